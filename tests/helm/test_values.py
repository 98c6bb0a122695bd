"""What the chart refuses and says, and how its values are documented."""

from typing import Any

import helm_python as helm
import pytest
import yaml

from helm_docs import document, entries
from tests.helm.chart import CHART, REQUIRED, chart, merged, render
