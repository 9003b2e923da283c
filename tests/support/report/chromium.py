"""A headless Chromium, controlled through two pipes with its DevTools protocol.

>>> with Chromium(tmp_path) as browser:
...     page = browser.open(tmp_path / "page.html", width=360, scheme="dark")
...     page.evaluate("document.title"), page.console_messages()
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time

TIMEOUT = 30.0  # seconds for one response
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe"),
)
EXEC_WITH_PIPES = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_browser():
    """The path of the browser, or ``None``."""
    return next(filter(None, map(shutil.which, [os.environ.get("CHROMIUM", ""), *NAMES])), None)


class Chromium:
    def __init__(self, folder):
        self._folder = folder
        self._serial = itertools.count(1)
        self._unread = b""
        self.events = []

    def __enter__(self):
        their_input, self._to = os.pipe()
        self._from, their_output = os.pipe()
        pipes = [
            fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (their_input, their_output)
        ]  # not 3 or 4, which the browser uses
        command = [sys.executable, "-c", EXEC_WITH_PIPES, *map(str, pipes), find_browser(), *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={self._folder}", "about:blank"],
            pass_fds=pipes,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (their_input, their_output, *pipes):
            os.close(end)
        return self

    def __exit__(self, *failure):
        try:
            self.call("Browser.close")
            self._process.wait(TIMEOUT)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._to)
            os.close(self._from)

    def open(self, file, width, scheme, height=900):
        """A page, after everything in it has been loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.call("Page.navigate", url=file.as_uri())
        while not page.events("Page.loadEventFired"):
            self._receive(time.monotonic() + TIMEOUT)
        return page

    def call(self, method, session=None, **parameters):
        message = {"id": next(self._serial), "method": method, "params": parameters}
        os.write(self._to, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT
        while (response := self._receive(deadline)).get("id") != message["id"]:
            pass
        assert "error" not in response, f"{method}: {response}"
        return response["result"]

    def _receive(self, deadline):
        """The next message; events are kept."""
        while b"\0" not in self._unread:
            assert select.select([self._from], [], [], deadline - time.monotonic())[0], "Chromium does not respond"
            part = os.read(self._from, 1 << 20)
            assert part, "Chromium has ended"
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(message)
        if "method" in message:
            self.events.append(message)
        return message


class Page:
    def __init__(self, browser, session):
        self._browser, self._session = browser, session

    def call(self, method, **parameters):
        return self._browser.call(method, self._session, **parameters)

    def events(self, method):
        events = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return [event["params"] for event in events if event["method"] == method]

    def evaluate(self, expression):
        response = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in response, response
        return response["result"].get("value")

    def console_messages(self):
        """All of them: a page without scripts should have none."""
        self.evaluate("0")  # messages sent before this have arrived now
        return [
            *self.events("Log.entryAdded"),
            *self.events("Runtime.consoleAPICalled"),
            *self.events("Runtime.exceptionThrown"),
        ]

    def take_screenshot(self, whole=True):
        response = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(response["data"])
