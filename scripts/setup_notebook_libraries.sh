#!/usr/bin/env bash
# Makes a small virtual environment for each library that takes our tables, with that library alone in it.
#
#   scripts/setup_notebook_libraries.sh FOLDER UV PYTHON
set -euo pipefail
folder=${1:?FOLDER} uv=${2:?UV} python=${3:?PYTHON}
for library in pandas polars pyarrow duckdb; do
    [[ -f $folder/$library/.complete ]] && continue
    rm -rf "${folder:?}/$library"
    "$uv" venv --python "$python" "$folder/$library"
    "$uv" pip install --python "$folder/$library/bin/python" "$library"
    touch "$folder/$library/.complete"
done
