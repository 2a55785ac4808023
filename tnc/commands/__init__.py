"""The commands of the command line, one file each. torch is imported when a command needs it."""
