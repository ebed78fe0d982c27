"""What a program is about to read, guessed from the image, and fetched before it asks.

Where there is no access profile, a program that starts waits for one round trip after the other. But what it
reads next can often be told from what it has opened: an ELF program needs its libraries, a Python program
imports the modules of its package, a Node program those that its packages depend on.

    guess       the steps of a guess: bytes it wants to have here, bytes it must see to guess further
    files       the image's files by path
    elf         segments and the dynamic section of an ELF file: pure
    libraries   what the dynamic linker reads for a program
    python      the modules that lie beside one that is imported
    nodejs      a package's modules, and the packages that it depends on
    predictor   the thread that makes guesses when files are read that are not here
    wants       what guesses want, the most urgent first, and how much of it is fetched

The bytes of an image are hostile: all parsing is bounded, and the worst that a wrong guess does is to fetch
bytes of the image itself, of which there is a limit (`wants`).
"""
