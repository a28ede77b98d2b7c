"""Nothing outside the modules made for it calls a factorisation of a library."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("tools/**/*.py")])
EXEMPT = ("plastic_core/linalg/", "plastic_select/linalg.py", "tools/bench/", "tools/faults/")
LIBRARIES = ("numpy.linalg.", "mlx.core.linalg.", "scipy.linalg.", "scipy.sparse.linalg.")
BY_THE_WAY = ("numpy.roots", "numpy.polyfit")  # eigenvalues, least squares
HARMLESS = ("norm", "vector_norm", "LinAlgError", "multi_dot", "matrix_power")
OF_VECTORS = (None, 1, "fro")  # orders of a norm that need no singular values


def full_names(tree: ast.AST) -> dict[str, str]:
    """What the names stand for that a module imports."""
    names = dict[str, str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return ""


def is_factorization(name: str) -> bool:
    return name in BY_THE_WAY or (
        name.startswith(LIBRARIES) and name.rpartition(".")[2] not in HARMLESS
    )


def spectral(call: ast.Call) -> bool:
    """Whether a call of a norm may ask for singular values."""
    orders = [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "ord")]
    return any(not isinstance(o, ast.Constant) or o.value not in OF_VECTORS for o in orders)


def factorizations(source: str) -> Iterator[str]:
    """The factorisations of libraries that a module names, with their lines."""
    tree = ast.parse(source)
    names = full_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = dotted(node, names)
            if is_factorization(name):
                yield f"line {node.lineno}: {name}"
        elif isinstance(node, ast.Call):
            name = dotted(node.func, names)
            if name.startswith(LIBRARIES) and name.endswith(".norm") and spectral(node):
                yield f"line {node.lineno}: {name} of a spectral order"


def test_the_sources_are_found() -> None:
    folders = {path.relative_to(ROOT).parts[-2] for path in SOURCES}
    assert {"plastic_core", "plastic_select", "plastic_runtime", "plastic_export"} <= folders


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_outside_linalg_calls_a_factorisation_of_a_library(path: Path) -> None:
    if any(part in path.as_posix() for part in EXEMPT):
        return
    assert list(factorizations(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.linalg.svd(A)",
        "import numpy\nnumpy.linalg.pinv(A)",
        "import numpy.linalg\nnumpy.linalg.qr(A)",
        "import numpy.linalg as la\nla.cond(A)",
        "from numpy import linalg\nlinalg.solve(A, b)",
        "from numpy.linalg import lstsq as fit\nfit(A, b)",
        "import numpy as np\nrank = np.linalg.matrix_rank",
        "import numpy as np\nnp.linalg.norm(A, 2)",
        "import numpy as np\nnp.linalg.norm(A, ord='nuc')",
        "import numpy as np\nnp.linalg.norm(A, order)",
        "import numpy as np\nnp.roots(c)",
        "import mlx.core as mx\nmx.linalg.eigh(A, stream=mx.cpu)",
        "from mlx.core import linalg\nlinalg.cholesky(A)",
        "import scipy\nscipy.linalg.lu(A)",
        "import scipy.sparse.linalg as sparse\nsparse.svds(A)",
        "def f(A):\n    from scipy.linalg import inv\n    return inv(A)",
    ],
)
def test_a_factorisation_is_found_however_it_is_imported(source: str) -> None:
    assert len(list(factorizations(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from plastic_core import linalg\nlinalg.qr(A)",
        "from plastic_core.linalg import thin_svd\nthin_svd(A)",
        "import numpy as np\nnp.linalg.norm(v)",
        "import numpy as np\nnp.linalg.norm(A, 'fro')",
        "import numpy as np\nnp.linalg.norm(A, axis=0)",
        "import mlx.core as mx\nmx.linalg.norm(v)",
        "import numpy as np\ntry:\n    f()\nexcept np.linalg.LinAlgError:\n    raise",
        "A.svd()",
    ],
)
def test_what_is_no_factorisation_of_a_library_passes(source: str) -> None:
    assert list(factorizations(source)) == []
