"""Importers: the exports of annotation tools and published data sets, into the one format.

A source is a module of this folder with a function ``find(root, ...)``. It lists what lies under a
folder as :class:`~tax_lightning.importers.cases.Found`, whose pixels are read one case at a time;
its further arguments are options of ``tax import``. The first line of the module's docstring is
what the command's help says of it. :func:`~tax_lightning.importers.writer.write` does the rest.

All that is public here raises the same errors, and their messages name the file and the cure:

- FileNotFoundError where a folder, a file or a part of the data is missing;
- ValueError where files cannot be read, do not fit each other, or an argument is out of range;
- ModuleNotFoundError where a library is not installed, with the extra that installs it.
"""
