"""The five boards, each in a file of its own that is a list of rows and panels."""

from __future__ import annotations

from dashboards.board import Board
from dashboards.boards.gateway import BOARD_GATEWAY
from dashboards.boards.overview import BOARD_OVERVIEW
from dashboards.boards.slo import BOARD_SLO
from dashboards.boards.streams import BOARD_STREAMS
from dashboards.boards.upstreams import BOARD_UPSTREAMS

BOARDS: tuple[Board, ...] = (BOARD_OVERVIEW, BOARD_STREAMS, BOARD_UPSTREAMS, BOARD_GATEWAY, BOARD_SLO)
