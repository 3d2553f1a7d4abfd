"""Chat templates of the most used open families, written from their documented forms.

Each is reduced to what decides where turns, answers and their ends stand.
"""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    text: str
    end: str
    """What ends an answer; the tokenizer's `eos_token` unless `eos` says another."""
    system: bool = True
    """False: a system turn is refused or dropped, so it goes in front of the user's text."""
    eos: str = ""
    special: tuple[str, ...] = ()
    header: str | None = None
    """What a server sends before an answer where that is not what a finished conversation has."""


def _each(body: str) -> str:
    return "{% for m in messages %}" + body + "{% endfor %}"


_CHATML = _each("{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}")
_CHATML_ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
_PLAIN_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}"
)

# The thoughts of earlier turns are left out; of the last one an empty block stays.
_QWEN_3 = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "# Tools\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == "user" %}
        {%- set ns.open = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') }}
            {{- '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or not loop.first %}
                {{- '\n' }}
            {%- endif %}
            {%- set call = call.function or call %}
            {{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
            {%- if call.arguments is string %}
                {{- call.arguments }}
            {%- else %}
                {{- call.arguments | tojson }}
            {%- endif %}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\n<tool_response>\n' + message.content }}
        {{- '\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""".strip("\n")

FAMILIES: dict[str, Family] = {
    "chatml": Family(_CHATML + _CHATML_ASK, "<|im_end|>"),
    "chatml without a generation prompt": Family(_CHATML, "<|im_end|>"),
    "yi": Family(
        _each("{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}")
        + _CHATML_ASK, "<|im_end|>",
    ),
    "qwen 2.5": Family(
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are a helpful "
        "assistant.<|im_end|>\\n' }}{% endif %}" + _CHATML + _CHATML_ASK, "<|im_end|>",
    ),
    "qwen 3": Family(_QWEN_3, "<|im_end|>"),
    "smollm": Family(
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are a helpful AI "
        "assistant named SmolLM<|im_end|>\\n' }}{% endif %}" + _CHATML + _CHATML_ASK, "<|im_end|>",
    ),
    "llama 2": Family(
        "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\\n' + messages[0].content + "
        "'\\n<</SYS>>\\n\\n' %}{% set turns = messages[1:] %}{% else %}{% set system = '' %}"
        "{% set turns = messages %}{% endif %}{% for m in turns %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]'"
        " }}{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        " </s>", eos="</s>", special=("<s>",),
    ),
    "llama 3": Family(
        "{{ bos_token }}"
        + _each(
            "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + "
            "'<|eot_id|>' }}"
        )
        + "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' "
        "}}{% endif %}",
        "<|eot_id|>", eos="<|eot_id|>",
        special=("<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>"),
    ),
    "llama 3.1 with a date": Family(
        "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + "
        "strftime_now('%d %b %Y') + '\\n\\n' }}{% if messages[0].role == 'system' %}"
        "{{ messages[0].content | trim }}{% set turns = messages[1:] %}{% else %}"
        "{% set turns = messages %}{% endif %}{{ '<|eot_id|>' }}{% for m in turns %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + "
        "'<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        "<|eot_id|>", eos="<|eot_id|>",
        special=("<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>"),
    ),
    "mistral": Family(
        "{{ bos_token }}"
        + _each(
            "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation "
            "roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
            "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}"
            "{{ m.content + eos_token }}{% endif %}"
        ),
        "</s>", system=False, eos="</s>", special=("<s>", "[INST]", "[/INST]"),
    ),
    "gemma": Family(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not "
        "supported') }}{% endif %}"
        + _each(
            "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + "
            "m.content | trim + '<end_of_turn>\\n' }}"
        )
        + "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        "<end_of_turn>", system=False, eos="<eos>",
        special=("<bos>", "<start_of_turn>", "<end_of_turn>"),
    ),
    "deepseek v2": Family(
        "{{ bos_token }}"
        + _each(
            "{% if m.role == 'user' %}{{ 'User: ' + m.content + '\\n\\n' }}{% elif m.role == "
            "'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}{% else %}"
            "{{ m.content + '\\n\\n' }}{% endif %}"
        )
        + "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        "<|eos|>", eos="<|eos|>", special=("<|bos|>",),
    ),
    "deepseek r1": Family(
        "{{ bos_token }}"
        + _each(
            "{% if m.role == 'user' %}{{ '<|User|>' + m.content }}{% elif m.role == 'assistant' %}"
            "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% else %}"
            "{{ m.content }}{% endif %}"
        )
        + "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}",
        "<|eos|>", eos="<|eos|>", special=("<|bos|>", "<|User|>", "<|Assistant|>"),
        header="<|Assistant|><think>\n",
    ),
    "phi 3": Family(
        _each("{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}")
        + "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}"
        "{% endif %}",
        "<|end|>", eos="<|endoftext|>",
        special=("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
    ),
    "command r": Family(
        "{{ bos_token }}"
        + _each(
            "{{ '<|START_OF_TURN_TOKEN|>' + {'system': '<|SYSTEM_TOKEN|>', 'user': "
            "'<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'}[m.role] + m.content.strip() + "
            "'<|END_OF_TURN_TOKEN|>' }}"
        )
        + "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}"
        "{% endif %}",
        "<|END_OF_TURN_TOKEN|>", eos="<|END_OF_TURN_TOKEN|>",
        special=("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>",
                 "<|CHATBOT_TOKEN|>"),
    ),
    "granite": Family(
        _each(
            "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + "
            "'<|end_of_text|>\\n' }}"
        )
        + "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}"
        "{% endif %}",
        "<|end_of_text|>", eos="<|end_of_text|>", special=("<|start_of_role|>", "<|end_of_role|>"),
    ),
    "olmo": Family(
        "{{ eos_token }}"
        + _each(
            "{{ '<|' + m.role + '|>\\n' + m.content }}{% if m.role == 'assistant' %}"
            "{{ eos_token }}{% endif %}{% if not loop.last %}{{ '\\n' }}{% endif %}"
        )
        + "{% if add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{% endif %}",
        "<|endoftext|>", eos="<|endoftext|>",
    ),
    "vicuna": Family(
        _PLAIN_SYSTEM
        + _each(
            "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}{% elif m.role == "
            "'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}"
        )
        + "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        "</s>", eos="</s>",
    ),
    "zephyr": Family(
        _each("{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}")
        + "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
        "</s>", eos="</s>",
    ),
    "alpaca": Family(
        _PLAIN_SYSTEM
        + _each(
            "{% if m.role == 'user' %}{{ '### Instruction:\\n' + m.content + '\\n\\n' }}{% elif "
            "m.role == 'assistant' %}{{ '### Response:\\n' + m.content + eos_token + '\\n\\n' }}"
            "{% endif %}"
        )
        + "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
        "</s>", eos="</s>",
    ),
    "falcon": Family(
        _each(
            "{% if not loop.first %}{{ '\\n' }}{% endif %}{{ {'system': 'System', 'user': 'User', "
            "'assistant': 'Falcon'}[m.role] + ': ' + m.content }}{% if m.role == 'assistant' %}"
            "{{ eos_token }}{% endif %}"
        )
        + "{% if add_generation_prompt %}{{ '\\nFalcon:' }}{% endif %}",
        "<|endoftext|>", eos="<|endoftext|>",
    ),
    "a template that drops the system turn": Family(
        _each(
            "{% if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\\n' + m.content + "
            "'<|im_end|>\\n' }}{% endif %}"
        )
        + _CHATML_ASK,
        "<|im_end|>", system=False,
    ),
}  # fmt: skip
