"""Training of every part of the model: `recipes.STAGES` lists the stages."""

from importlib.util import find_spec

from percov2_core.errors import UnavailableError

if _missing := [
    name for name in ("accelerate", "peft", "vector_quantize_pytorch") if find_spec(name) is None
]:
    raise UnavailableError(
        f"training needs {', '.join(_missing)}: run pip install 'percov2-core[train]'"
    )
