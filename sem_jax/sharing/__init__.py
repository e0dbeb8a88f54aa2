"""A trained model as a folder of plain files, to be given to others."""
