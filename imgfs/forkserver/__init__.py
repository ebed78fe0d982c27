"""A fork server: a waiting process of the user that has loaded imgfs, and forks a process for each command.

What a mount takes is loaded once: a command begins at once, and the daemons of all mounts share the memory,
copied when one of them writes to it. A crash is that of one daemon, and the server's end ends no mount.

A command carried out so is to be like one that was started by itself. What its caller may do, and sees of the
machine, has to be what the server may do and sees, as /proc has it, not as the caller says; the rest is taken
over. Whatever does not fit is a refusal, and the caller carries the command out itself.

client      a command handed to the server; loads next to nothing
request     what is sent: words, variables, how text is encoded
caller      the process that asks, by /proc: whether the server is like it, and what is taken over
command     the forked process: checks, becomes what was asked for, runs it
server      listens, forks, notices the end
companions  other processes that live as long as the server

    client ──── connect, request, descriptors 0, 1, 2 and of the directory ───► forked process
           ◄─── PROVE: what a confined process cannot read ─────────────────────
           ──── that ──────────────────────────────────────────────────────────►
           ◄─── ACCEPTED and its pid, or REFUSED and why ──────────────────────
           ◄─── the exit code (EXIT) ──────────────────────────────────────────

A client that is gone ends its command, as the end of a process is: the kernel kills the forked process when
the connection closes. Signals that end a client are passed on.
"""
