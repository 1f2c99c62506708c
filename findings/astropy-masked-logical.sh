#!/usr/bin/env bash
# A masked truth value does not survive a FITS table in astropy 8.0.2: "unknown" comes back as True, without a word.
#
# FITS has a null for logical columns (byte 0; FITS standard 4.0, section 7.3.3.1), and astropy's Table has masked
# booleans. One would expect `Table.write("t.fits")` to map the one to the other, as it does for floats (NaN) and
# integers (TNULL). Behaviour seen, numpy 2.4.6:
#
#   - a masked boolean is written as the byte T, whatever lies under the mask, and no warning is given;
#     read back, the column is not masked and the unknown row says True;
#   - a table that does hold the null is read by Table.read as False, with a warning that names another option.
#
# So a flag such as "is out of distribution" that is unknown for some rows must not be a FITS logical: selecting
# `table[table["flag"]]` or `table[~table["flag"]]` takes the unknown rows along, one way or the other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check astropy==8.0.2 numpy==2.4.6
"$folder/env/bin/python" - "$folder" <<'PYTHON'
import sys
import warnings

import numpy as np
from astropy.io import fits
from astropy.table import MaskedColumn, Table

path = f"{sys.argv[1]}/t.fits"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    flags = MaskedColumn([True, False, False, True], mask=[False, False, True, True])
    Table({"flag": flags}).write(path)
    back = Table.read(path)["flag"]
print("written [True, False, --, --]; read back", back.tolist(), "masked:", bool(np.ma.is_masked(back)))
print("warnings:", [str(item.message) for item in caught])
assert back.tolist() == [True, False, True, True] and not np.ma.is_masked(back) and not caught

with open(path, "r+b") as file:  # the third cell becomes the standard's null
    file.seek(2 * 2880 + 2)
    file.write(b"\0")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    back = Table.read(path)["flag"]
print("null in the file; read back", back.tolist(), "masked:", bool(np.ma.is_masked(back)), "warnings:", len(caught))
assert back.tolist() == [True, False, False, True] and not np.ma.is_masked(back) and len(caught) == 1
PYTHON
