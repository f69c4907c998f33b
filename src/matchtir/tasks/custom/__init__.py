"""Tasks of one's own: questions in JSON lines, tools from Python or an MCP server."""

from matchtir.tasks.custom.tasks import CustomTasks as CustomTasks
