"""A model that runs here: it answers with what it was told, after a call of a tool where it has one."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

from agents import Model, ModelResponse, Usage
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)

__all__ = ["Local"]


class Local(Model):
    """Remembers what it was given, for a test to look at."""

    def __init__(self) -> None:
        self.inputs: list[list[Any]] = []

    async def get_response(self, *_: Any, **given: Any) -> ModelResponse:
        told, tools = given["input"], given["tools"]
        self.inputs.append([*told])
        if tools and told[-1].get("type") != "function_call_output":
            call = ResponseFunctionToolCall(
                id=f"fc_{uuid.uuid4().hex}",
                call_id=f"call_{uuid.uuid4().hex}",
                name=tools[0].name,
                arguments='{"city": "Tōkyō"}',
                type="function_call",
            )
            return ModelResponse([call], Usage(), None)
        texts = [item["content"] for item in told if item.get("role") == "user"]
        answer = ResponseOutputMessage(
            id=f"msg_{uuid.uuid4().hex}",
            content=[ResponseOutputText(text=f"I was told: {', '.join(texts)}", type="output_text", annotations=[])],
            role="assistant",
            status="completed",
            type="message",
        )
        return ModelResponse([answer], Usage(), None)

    async def stream_response(self, *given: Any, **_: Any) -> AsyncIterator[Any]:
        answer = await self.get_response(input=given[1], tools=given[3])
        response = Response(
            id="resp_1",
            created_at=0,
            model="local",
            object="response",
            output=answer.output,
            parallel_tool_calls=False,
            tool_choice="auto",
            tools=[],
        )
        yield ResponseCompletedEvent(response=response, sequence_number=0, type="response.completed")
