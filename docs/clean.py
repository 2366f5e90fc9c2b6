"""Write the notebook of standard input without what running it has added: outputs, counts, an editor's marks.

`make setup` tells git to compare and commit notebooks/*.ipynb so (.gitattributes).
"""

import json
import sys

notebook = json.load(sys.stdin)
for cell in notebook["cells"]:
    cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
    if cell["cell_type"] == "code":
        cell |= {"outputs": [], "execution_count": None}
kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
kept = {key: value for key, value in notebook["metadata"].items() if key == "jupytext"}
notebook["metadata"] = kept | {"kernelspec": kernel}
print(json.dumps(notebook, indent=1, ensure_ascii=False))
