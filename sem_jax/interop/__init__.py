"""Import and export of the PyTorch original's state dicts."""

from sem_jax.interop.errors import InteropError
from sem_jax.interop.files import write_state_dict
from sem_jax.interop.state_dict import DEFAULTS, differences, export_state_dict, import_state_dict

__all__ = ["DEFAULTS", "InteropError", "differences", "export_state_dict", "import_state_dict", "write_state_dict"]
