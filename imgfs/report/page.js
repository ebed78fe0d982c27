"use strict";
// Draws the report. All text gets into the document as text: nothing here parses HTML.
(() => {
const facts = JSON.parse(document.getElementById("facts").textContent);
const page = document.getElementById("page");
const NAME = 0, SIZE = 1, LAYER = 2, FILES = 3, BELOW = 4;  // of an area

const element = (name, text, ...classes) => {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = String(text);
  if (classes.length) made.classList.add(...classes);
  return made;
};
const add = (to, name, text, ...classes) => to.appendChild(element(name, text, ...classes));
const size = (bytes) => {
  const units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
  let unit = 0;
  while (bytes >= 999.5 && unit < units.length - 1) { bytes /= 1000; unit += 1; }
  return `${unit && bytes < 99.5 ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
};
const counted = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const colour = (layer) => layer ? `hsl(${(layer * 137.508 + 190) % 360} 52% 42%)` : "#777";
const section = (title, hint) => {
  add(page, "h2", title);
  if (hint) add(page, "p", hint, "dim");
  return page;
};
const chip = (cell, layer) => {
  const box = element("span", null, "chip");
  box.style.background = colour(layer);
  cell.prepend(box);
};

// columns: [title, is a number, how its cell is filled from (cell, value)]
const table = (columns, rows, scrolls) => {
  const place = scrolls ? add(page, "div", null, "scroll") : page;
  const made = add(place, "table"), head = add(add(made, "thead"), "tr"), body = add(made, "tbody");
  for (const [title, isNumber] of columns) add(head, "th", title, ...(isNumber ? ["number"] : []));
  for (const row of rows) {
    const line = add(body, "tr");
    columns.forEach(([, isNumber, fill], at) => {
      const cell = add(line, "td", null, ...(isNumber ? ["number"] : []));
      fill ? fill(cell, row[at]) : cell.textContent = row[at] ?? "";
    });
  }
  return body;
};
const asSize = (cell, bytes) => { cell.textContent = size(bytes); };
const asPath = (cell, path) => { cell.classList.add("path"); cell.textContent = path; };
const asLayer = (cell, layer) => {
  cell.textContent = layer || "-";
  if (layer) chip(cell, layer);
};

// The squarified treemap of Bruls, Huizing and van Wijk: rows whose areas are as square as they can be.
const squarified = (areas, box) => {
  const total = areas.reduce((sum, area) => sum + area[SIZE], 0), placed = [];
  let { x, y, width, height } = box, at = 0;
  if (!total || width <= 0 || height <= 0) return placed;
  const scale = width * height / total;
  while (at < areas.length && width > 0.5 && height > 0.5) {
    const side = Math.min(width, height), row = [];
    let sum = 0, worst = Infinity;
    for (let next = at; next < areas.length; next += 1) {
      const grown = sum + areas[next][SIZE] * scale;
      const largest = areas[at][SIZE] * scale, smallest = areas[next][SIZE] * scale;
      const ratio = Math.max(side * side * largest / (grown * grown), grown * grown / (side * side * (smallest || 1e-9)));
      if (row.length && ratio > worst) break;
      row.push(areas[next]); sum = grown; worst = ratio;
    }
    const thickness = sum / side;
    let along = 0;
    for (const area of row) {
      const length = thickness ? area[SIZE] * scale / thickness : 0;
      placed.push([area, width >= height
        ? { x, y: y + along, width: thickness, height: length }
        : { x: x + along, y, width: length, height: thickness }]);
      along += length;
    }
    if (width >= height) { x += thickness; width -= thickness; } else { y += thickness; height -= thickness; }
    at += row.length;
  }
  return placed;
};

let chosen = 0, trail = [facts.map];
const title = (area) => area[NAME] || (area === facts.map ? "/" : counted(area[FILES], "smaller file"));

const drawMap = (map, crumbs, hint) => {
  map.replaceChildren();
  crumbs.replaceChildren();
  trail.forEach((area, depth) => {
    const button = add(crumbs, "button", depth ? title(area) : "/");
    button.addEventListener("click", () => { trail = trail.slice(0, depth + 1); drawMap(map, crumbs, hint); });
  });
  let left = 2500;  // elements: as many as a browser draws at once
  const draw = (area, box, path, depth) => {
    const inside = [...(area[BELOW] || [])].sort((one, other) => other[SIZE] - one[SIZE]);
    for (const [child, place] of squarified(inside, box)) {
      if (place.width < 3 || place.height < 3 || left-- < 0) continue;
      const way = [...path, child], shown = add(map, "div", title(child), "area");
      Object.assign(shown.style, { left: `${place.x}px`, top: `${place.y}px`, width: `${place.width}px`,
        height: `${place.height}px`, background: colour(child[LAYER]), zIndex: String(depth) });
      if (chosen && child[LAYER] !== chosen && !child[BELOW]) shown.classList.add("faded");
      const whole = way.map((each) => each === facts.map ? "" : title(each)).join("/") || "/";
      shown.title = `${whole}\n${size(child[SIZE])}, ${counted(child[FILES], "file")}, mostly of layer ${child[LAYER]}`;
      shown.addEventListener("mouseover", (event) => {
        event.stopPropagation();
        hint.textContent = shown.title.replace("\n", " \u2014 ");
      });
      if (child[BELOW]) {
        shown.classList.add("directory");
        shown.addEventListener("click", (event) => {
          event.stopPropagation();
          trail = way;
          drawMap(map, crumbs, hint);
        });
        if (place.width > 40 && place.height > 34 && depth < 8) {
          draw(child, { x: place.x + 2, y: place.y + 16, width: place.width - 4, height: place.height - 18 }, way, depth + 1);
        }
      }
    }
  };
  draw(trail[trail.length - 1], { x: 0, y: 0, width: map.clientWidth, height: map.clientHeight }, trail, 1);
};

const heading = () => {
  add(page, "h1", facts.image);
  add(page, "p", facts.digest, "digest", "dim");
  const cards = add(page, "div", null, "cards");
  const card = (value, word) => {
    const made = add(cards, "div", null, "card");
    add(made, "b", value);
    add(made, "span", word, "dim");
  };
  card(facts.platform, "platform");
  if (facts.created) card(facts.created.slice(0, 10), "created");
  card(facts.layers.length, "layers");
  card(size(facts.layers.reduce((sum, layer) => sum + layer.stored, 0)), "to pull");
  card(size(facts.map[SIZE]), "in files");
  card(facts.map[FILES].toLocaleString("en"), "files");
  if (facts.waste) {
    card(`${(facts.waste.efficiency * 100).toFixed(1)} %`, "efficiency");
    card(size(facts.waste.lost), "wasted");
  }
};

const layersAndMap = () => {
  section("Layers", "As they are stored, the lowest first. Choose one to see its files in the map.");
  const bar = add(page, "div", null, "bar");
  const total = facts.layers.reduce((sum, layer) => sum + layer.stored, 0) || 1;
  const buttons = facts.layers.map((layer) => {
    const button = add(bar, "button", layer.stored / total > 0.04 ? layer.number : "");
    button.style.background = colour(layer.number);
    button.style.flex = `${layer.stored / total} 1 0`;
    button.title = `layer ${layer.number}: ${size(layer.stored)}\n${layer.command}`;
    button.setAttribute("aria-label", `layer ${layer.number}`);
    button.setAttribute("aria-pressed", "false");
    return button;
  });
  section("Files", "What the image shows, by size and by the layer that most bytes are of.");
  const crumbs = add(page, "div", null, "crumbs"), map = add(page, "div", null, "map");
  const hint = add(page, "p", "Click a directory to see it larger.", "hint", "dim", "path");
  const redraw = () => drawMap(map, crumbs, hint);
  buttons.forEach((button, at) => button.addEventListener("click", () => {
    chosen = chosen === at + 1 ? 0 : at + 1;
    buttons.forEach((each, number) => each.setAttribute("aria-pressed", String(chosen === number + 1)));
    redraw();
  }));
  window.addEventListener("resize", redraw);
  redraw();
};

const tables = () => {
  section("Largest files");
  table([["File", false, asPath], ["Size", true, asSize], ["Layer", true, asLayer]], facts.largest, true);
  if (facts.waste) {
    section("Wasted", `${size(facts.waste.lost)} of ${size(facts.waste.stored)} are of files that upper layers overwrite or delete.`);
    table([["File", false, asPath], ["Size", true, asSize], ["Layer", true, asLayer], ["Hidden by", true, asLayer], ["How"]],
      facts.waste.largest.map((row) => [...row.slice(0, 4), row[4] ? "overwritten" : "deleted"]), true);
  }
  section("History");
  table([["Layer", true, asLayer], ["Size", true, asSize], ["Created"], ["Step", false, asPath]],
    facts.steps.map((step) => [step.layer, step.size, step.created.slice(0, 10), step.command || "not said"]), true);
  if (facts.config.length) {
    section("Configuration");
    table([["Name"], ["Value", false, asPath]], facts.config);
  }
};

const packages = () => {
  if (!facts.packages) return;
  const { list, error, distribution, more, unread = [] } = facts.packages;
  section("Packages", error || [`${counted(list.length, "package")}${more ? " and more" : ""}`, distribution].filter(Boolean).join(" of "));
  for (const line of unread) add(page, "p", `not read: ${line}`, "dim");
  if (!list.length) return;
  const filter = add(page, "input");
  filter.placeholder = "Filter by name";
  filter.setAttribute("aria-label", "Filter by name");
  const body = table([["Type"], ["Name"], ["Version"], ["Layer", true, asLayer]], list, true);
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    [...body.rows].forEach((row, at) => { row.hidden = !list[at][1].toLowerCase().includes(wanted); });
  });
};

const CAUSES = { miss: "a reader that waited", ahead: "read-ahead in a file", near: "what lies near",
  replay: "a replayed profile", whole: "small or much-read layers", fill: "filling the store", sweep: "readers of whole trees",
  library: "a guess: libraries of a program", module: "a guess: modules beside one" };
const causeColour = (cause) => `hsl(${(Object.keys(CAUSES).indexOf(cause) * 137.508 + 205) % 360} 58% 48%)`;
// Bars: what came in each stretch of time, by cause; the line: what readers came to first in it.
const overTime = ({ stretch, read, fetched }) => {
  const causes = Object.keys(fetched), sums = read.map((_, at) => causes.reduce((sum, cause) => sum + (fetched[cause][at] || 0), 0));
  const highest = Math.max(...sums, ...read);
  if (!highest) return;
  const hint = add(page, "p", `Over time: ${read.length} stretches of ${stretch} s; bars are what was fetched, at most ${size(highest)} in each, the line is what was read for the first time.`, "dim");
  const said = hint.textContent, canvas = add(page, "canvas", null, "time"), context = canvas.getContext("2d");
  const legend = add(page, "p", null, "legend", "dim");
  for (const cause of causes) {
    const box = add(legend, "span", null, "chip");
    box.style.background = causeColour(cause);
    add(legend, "span", `${CAUSES[cause] || cause} `);
  }
  const draw = () => {
    const scale = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    const wide = canvas.width / read.length, high = (bytes) => bytes / highest * (canvas.height - 2 * scale);
    read.forEach((_, at) => {
      let below = canvas.height;
      for (const cause of causes) {
        const tall = high(fetched[cause][at] || 0);
        below -= tall;
        context.fillStyle = causeColour(cause);
        context.fillRect(at * wide, below, Math.max(1, wide - 1), tall);
      }
    });
    context.strokeStyle = getComputedStyle(canvas).color;
    context.lineWidth = 1.5 * scale;
    context.beginPath();
    read.forEach((bytes, at) => context.lineTo((at + 0.5) * wide, canvas.height - high(bytes) - scale));
    context.stroke();
  };
  canvas.addEventListener("mousemove", (event) => {
    const at = Math.min(read.length - 1, Math.floor(event.offsetX / canvas.clientWidth * read.length));
    const parts = causes.filter((cause) => fetched[cause][at]).map((cause) => `${size(fetched[cause][at])} for ${CAUSES[cause] || cause}`);
    hint.textContent = `${(at * stretch).toFixed(1)} s: ${size(read[at])} read for the first time, fetched: ${parts.join(", ") || "nothing"}`;
  });
  canvas.addEventListener("mouseleave", () => { hint.textContent = said; });
  window.addEventListener("resize", draw);
  draw();
};
const mount = () => {
  const found = facts.mount;
  if (!found) return;
  section("This mount", `${found.mountpoint} (${found.driver}), for ${Math.round(found.seconds).toLocaleString("en")} s: ` +
    `${size(found.fetched)} fetched${found.requests ? ` in ${counted(found.requests, "request")}` : ""}, ${size(found.served)} read.`);
  if (found.moved) add(page, "p", "The tag names another image by now: the rest of this page is about that one.");
  if (found.timeline) overTime(found.timeline);
  table([["Fetched for"], ["Spans", true], ["Bytes", true, asSize], ["Spans read", true], ["Bytes read", true, asSize]],
    found.causes.filter((row) => row[1]).map(([cause, ...sums]) => [CAUSES[cause] || cause, ...sums]));
  add(page, "p", "By layer:", "dim");
  table([["Layer", true, asLayer], ["Size", true, asSize], ["Read", true, asSize], ["of it here before", true, asSize], ["Fetched", true, asSize], ["Spans here", true]],
    found.layers.map((layer, at) => [at + 1, layer.size, layer.needed, layer.here, layer.fetched, `${layer.present} of ${layer.spans}`]));
};

const accesses = () => {
  if (!facts.accesses) return;
  section("Order of accesses", `${counted(facts.accesses.count, "span")} as mounts have read them first, from left to right; a row is a layer, and in it a span's place in the layer from top to bottom.`);
  const canvas = add(page, "canvas"), context = canvas.getContext("2d");
  const rows = facts.layers.length, points = facts.accesses.points;
  const draw = () => {
    const scale = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    const high = canvas.height / rows;
    context.strokeStyle = "#8886";
    for (let row = 1; row < rows; row += 1) {
      context.beginPath();
      context.moveTo(0, row * high);
      context.lineTo(canvas.width, row * high);
      context.stroke();
    }
    points.forEach(([layer, at], order) => {
      context.fillStyle = colour(layer);
      context.fillRect(order / points.length * canvas.width, (layer - 1 + at) * high, 2.5 * scale, 2.5 * scale);
    });
  };
  window.addEventListener("resize", draw);
  draw();
};

heading();
layersAndMap();
mount();
accesses();
tables();
packages();
})();
