"""MCP over standard input and output: the tools of tools.py as an MCP server.

Must not know: what a tool does.
"""

import asyncio
import json
from typing import Any, NoReturn

import mcp_types as types
from mcp.server import Server
from mcp.server.stdio import stdio_server

from .. import __version__
from ..errors import ImagegenError
from .pictures import as_base64
from .server import end_process
from .tools import Answer, Tools
from .worker import INTERNAL, log_error

NAME = "mlx-imagegen"
INSTRUCTIONS = (
    "Makes and edits pictures on this machine. generate and edit answer with the written files and small copies, or, "
    "where that takes longer, with a job: call check with its id until it is done."
)
STOP_SECONDS = 0.5


def make_server(tools: Tools) -> Server[Any]:
    async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
        found = tools.all()
        return types.ListToolsResult(
            tools=[types.Tool(name=tool.name, description=tool.description, input_schema=tool.schema) for tool in found]
        )

    async def call_tool(_: Any, call: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            return _result(await tools.call(call.name, call.arguments or {}))
        except ImagegenError as error:
            return _error(str(error))
        except Exception as error:
            log_error(call.name, error)
            return _error(INTERNAL)

    return Server(
        NAME, version=__version__, instructions=INSTRUCTIONS, on_list_tools=list_tools, on_call_tool=call_tool
    )


async def serve(tools: Tools) -> None:
    server = make_server(tools)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def run(tools: Tools) -> NoReturn:
    """Until the host closes the input; the process ends with it."""
    asyncio.run(serve(tools))
    tools.service.stop(STOP_SECONDS)
    end_process()


def _result(answer: Answer) -> types.CallToolResult:
    text = types.TextContent(type="text", text=json.dumps(answer.facts, ensure_ascii=False))
    pictures = [types.ImageContent(data=as_base64(data), mime_type="image/jpeg") for data in answer.pictures]
    failed = "error" in answer.facts
    return types.CallToolResult(content=[text, *pictures], structured_content=answer.facts, is_error=failed)


def _error(message: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=message)], is_error=True)
