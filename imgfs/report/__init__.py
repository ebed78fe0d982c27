"""An image, or a mount of it, as one page of HTML that loads nothing from elsewhere.

treemap    sizes of directories and files by layer, the small ones summed up
facts      what is said of an image: layers, steps, files, waste, packages, accesses, as JSON has it
page       the page of these facts; `page.html`, `page.css` and `page.js` are its parts

Names and labels are the image's: they are quoted as for a terminal, stand in the page as JSON that cannot end
its element, and get into the document as text nodes only. The page's own policy (CSP) allows no script or
style but these two, and no connection.
"""
