"""Chromium without a window, driven through the WebDriver protocol that chromedriver speaks."""

import json
import re
import shutil
import subprocess
import urllib.request
from contextlib import contextmanager

SWITCHES = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",  # they take no width on a phone
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
KEYS = {
    "Left": "\ue012",
    "Up": "\ue013",
    "Right": "\ue014",
    "Down": "\ue015",
    "Shift": "\ue008",
    "Tab": "\ue004",
    "Escape": "\ue00c",
    "Space": " ",
}
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def programs():
    """Chromium and chromedriver, or None where one of them is missing."""
    found = [shutil.which("chromium") or shutil.which("chromium-browser")]
    found.append(shutil.which("chromedriver"))
    return found if all(found) else None


@contextmanager
def started(profile):
    """A browser with an empty profile in this folder."""
    chromium, chromedriver = programs()
    driver = subprocess.Popen(
        [chromedriver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        port = next(
            found[1]
            for line in driver.stdout
            if (found := re.search(r"successfully on port (\d+)", line))
        )
        browser = Browser(f"http://127.0.0.1:{port}", chromium, profile)
        try:
            yield browser
        finally:
            browser.quit()
    finally:
        driver.terminate()
        driver.wait()
        driver.stdout.close()


class Browser:
    """One window."""

    def __init__(self, driver, chromium, profile):
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        options = {
            "binary": chromium,
            "args": [*SWITCHES, f"--user-data-dir={profile}"],
        }
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        made = self._send(
            "POST", f"{driver}/session", {"capabilities": {"alwaysMatch": capabilities}}
        )
        self._session = f"{driver}/session/{made['sessionId']}"

    def _send(self, method, url, content=None):
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            url, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with self._open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def _post(self, command, content):
        return self._send("POST", f"{self._session}/{command}", content)

    def quit(self):
        self._send("DELETE", self._session)

    def chrome(self, command, **parameters):
        """A command of Chromium's own protocol."""
        return self._post("goog/cdp/execute", {"cmd": command, "params": parameters})

    def size(self, width, height):
        """Width and height of the window in CSS pixels."""
        self.chrome(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefers(self, scheme):
        """``dark`` or ``light``."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.chrome("Emulation.setEmulatedMedia", features=features)

    def open(self, path, anchor=""):
        self._post("url", {"url": "about:blank"})
        self._post("url", {"url": path.as_uri() + anchor})

    def run(self, script, *arguments):
        """What a script returns; a promise is waited for."""
        return self._post("execute/sync", {"script": script, "args": list(arguments)})

    def click(self, selector):
        found = self._post("element", {"using": "css selector", "value": selector})
        self._post(f"element/{found[_ELEMENT]}/click", {})

    def point(self, selector, x, y, press=False):
        """Move the pointer to a place in an element, from its top left corner; press there."""
        box = self.run(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top];",
            selector,
        )
        move = {
            "type": "pointerMove",
            "duration": 0,
            "x": round(box[0] + x),
            "y": round(box[1] + y),
        }
        presses = [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        actions = [move, *(presses if press else [])]
        self._post("actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": actions}]})

    def press(self, *names):
        """Keys one after the other; ``Shift+Left`` holds the first."""
        actions = []
        for name in names:
            keys = [KEYS.get(key, key) for key in name.split("+")]
            actions += [{"type": "keyDown", "value": key} for key in keys]
            actions += [{"type": "keyUp", "value": key} for key in reversed(keys)]
        self._post("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def console(self):
        """What was said there since the last time."""
        return [entry["message"] for entry in self._post("se/log", {"type": "browser"})]

    def requests(self):
        """Addresses that were asked for since the last time."""
        events = [
            json.loads(entry["message"])["message"]
            for entry in self._post("se/log", {"type": "performance"})
        ]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
