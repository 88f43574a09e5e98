#!/bin/sh
# Installs atlas-edge from this folder alone, without the internet: ./install.sh [FOLDER]
set -eu
kit=$$(cd "$$(dirname "$$0")" && pwd)
to=$${1:-"$$kit/atlas"}
(cd "$$kit" && sha256sum --quiet -c SHA256SUMS)
python$python -m venv "$$to"
"$$to/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --require-hashes \
    --find-links "$$kit/wheels" -r "$$kit/requirements.txt"
for bundle in "$$kit"/bundles/*; do
    "$$to/bin/atlas-export" verify "$$bundle"
done
echo "installed in $$to"
