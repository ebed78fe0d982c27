"""How a machine is told of imgfs: containerd's configuration is changed, and systemd gets units.

toml_edit          values set in a TOML file line by line: all else stays, and what was set is undone
config_places      which file that is: some nodes write theirs themselves; and which are read after it
containerd_config  what containerd has to be told, by the version of its configuration
containerd_load    what containerd makes of all files of it together
unit               the servers' units     changed_files  what is written, and kept of before
"""
