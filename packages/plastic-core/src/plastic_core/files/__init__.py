"""Files that are checked in full before anything reads them, and written whole or not at all."""

from plastic_core.files.arrays import MLX_DTYPES, Array, array_bytes, array_from_bytes, dtype_name
from plastic_core.files.atomic import (
    AtomicFile,
    copy_file,
    json_digest,
    sha256_file,
    sync,
    sync_path,
    temporary_name,
    write_json,
)
from plastic_core.files.closing import Closing, Leaving
from plastic_core.files.errors import FormatError
from plastic_core.files.foreign import Foreign, recognise_name
from plastic_core.files.header import ITEM_BYTES, Header, TensorInfo
from plastic_core.files.journal import Journal, check_same
from plastic_core.files.lock import HOLDER, BusyError, FolderLock, check_unheld
from plastic_core.files.memory import check_memory, memory_limit
from plastic_core.files.notes import naming, noting
from plastic_core.files.paths import (
    beside,
    files_under,
    hub_identity,
    in_hub_cache,
    member,
    open_regular,
    partial_of,
)
from plastic_core.files.strictjson import parse_object
from plastic_core.files.validate import (
    Fingerprint,
    OpenFile,
    changed,
    fingerprint,
    open_safetensors,
    read_header,
    read_index,
    read_json,
)
from plastic_core.files.weights import (
    export_safetensors,
    load_safetensors,
    read_arrays,
    write_arrays,
)
from plastic_core.files.writer import SafetensorsWriter, TensorSpec, encode_header, tensor_spans

__all__ = [
    "HOLDER",
    "ITEM_BYTES",
    "MLX_DTYPES",
    "Array",
    "AtomicFile",
    "BusyError",
    "Closing",
    "Fingerprint",
    "FolderLock",
    "Foreign",
    "FormatError",
    "Header",
    "Journal",
    "Leaving",
    "OpenFile",
    "SafetensorsWriter",
    "TensorInfo",
    "TensorSpec",
    "array_bytes",
    "array_from_bytes",
    "beside",
    "changed",
    "check_memory",
    "check_same",
    "check_unheld",
    "copy_file",
    "dtype_name",
    "encode_header",
    "export_safetensors",
    "files_under",
    "fingerprint",
    "hub_identity",
    "in_hub_cache",
    "json_digest",
    "load_safetensors",
    "member",
    "memory_limit",
    "naming",
    "noting",
    "open_regular",
    "open_safetensors",
    "parse_object",
    "partial_of",
    "read_arrays",
    "read_header",
    "read_index",
    "read_json",
    "recognise_name",
    "sha256_file",
    "sync",
    "sync_path",
    "temporary_name",
    "tensor_spans",
    "write_arrays",
    "write_json",
]
