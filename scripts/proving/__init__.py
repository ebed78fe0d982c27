"""The proof that no byte is ever wrong: imgfs under chance, for minutes or for days.

    fuzz       damages every kind of byte of images in every format, case after case
    damage     what can happen to bytes, to JSON, to a database, to a tar
    specimens  one image in every format, and all that can be published of it
    urls       URLs of servers, as several parsers read them
    cases      what is damaged, and what must come of it
    soak       mounts read by many while their registries misbehave; nothing wrong, nothing left behind
    storm      daemons of mounts killed under programs       storm_programs   those
    node_storm containerd, the snapshotter and its mounts' daemons killed in a node that is at work
    load       the readers, and the daemon's use of the machine

A run is a seed: the same seed makes the same damage again. Both need what the tests need.
"""
