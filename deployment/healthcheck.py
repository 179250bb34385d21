"""The images' health check: healthcheck.py PORT_VARIABLE DEFAULT_PORT PATH; exit code 0 for 200."""

import os
import sys
import urllib.request

variable, port, path = sys.argv[1:]
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever HTTP_PROXY says
direct.open(f"http://127.0.0.1:{os.environ.get(variable) or port}{path}", timeout=4)
