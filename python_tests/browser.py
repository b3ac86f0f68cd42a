"""A page in a real browser, where the machine has one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def in_browser(page: str, script: str, folder: Path, address: str = "") -> dict:
    """What `script`, the body of an async function, returns when the page has loaded, and the errors on the way."""
    check = """<script>
      const errors = [];
      addEventListener("error", (event) => errors.push(event.message));
    </script></head>"""
    ask = f"""<script>addEventListener("load", async () => {{
      const found = await (async () => {{ {script} }})();
      document.title = JSON.stringify({{ errors, ...found }});
    }});</script></body>"""
    path = folder / "page.html"
    path.write_text(page.replace("</head>", check, 1).replace("</body>", ask), "utf-8")
    # The browser's clock runs on while pictures are decoded, which takes longer on a busy machine: then with more time.
    for budget in (10_000, 100_000, 1_000_000):
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            f"--virtual-time-budget={budget}",
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            path.as_uri() + address,
        ]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
        answer = re.search(r"<title>(\{.*?\})</title>", dom, re.DOTALL)
        if answer is not None:
            return json.loads(html.unescape(answer[1]))
    raise AssertionError("the page never answered")
