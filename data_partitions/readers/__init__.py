"""The file formats that data sets come in, read into arrays. Nothing here unpickles or executes what a file holds.

What a file declares is compared with the memory there is before it is unpacked. How values are taken where that is not
obvious, and what is left out, is said in a note.
"""
