"""The committed code is what the script makes of the .proto."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

from imgvol.api.cri.generated import runtime_pb2

ROOT = Path(__file__).parents[4]
GENERATED = ROOT / "src/imgvol/api/cri/generated"


def test_the_script_makes_what_is_committed(tmp_path):
    if importlib.util.find_spec("grpc_tools") is None:
        pytest.skip("grpcio-tools is not installed (scripts/setup installs it)")
    subprocess.run([ROOT / "scripts/generate-proto", tmp_path], check=True, timeout=120)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(made) == {"runtime_pb2.py", "runtime_pb2.pyi"}
    for name, text in made.items():
        assert (GENERATED / name).read_bytes() == text, f"run scripts/generate-proto for {name}"


def test_only_the_services_that_there_are_are_in_it():
    services = runtime_pb2.DESCRIPTOR.services_by_name
    assert {name: sorted(s.methods_by_name) for name, s in services.items()} == {
        "ImageService": [
            *("ImageFsInfo", "ImageStatus", "ListImages"),
            *("PullImage", "RemoveImage", "StreamImages"),
        ],
        "RuntimeService": ["Status", "Version"],
    }


def test_secrets_are_marked_as_such():
    fields = runtime_pb2.AuthConfig.DESCRIPTOR.fields
    secret = {field.name for field in fields if field.GetOptions().debug_redact}
    assert secret == {"password", "auth", "identity_token", "registry_token"}
