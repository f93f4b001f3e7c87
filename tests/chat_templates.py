"""Chat templates as models have them, written from their published formats, with `{% generation %}` around what the
assistant says: an independent account of where its words are."""

from __future__ import annotations

_EACH = "{%- for m in messages %}"
_GENERATE = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}"
    "{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + _GENERATE
)

# Llama 3: trims, writes the date, tool calls as JSON
LLAMA3 = (
    '{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}'
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content | trim }}{%- endif %}"
    "{%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}"
    "{%- endif %}{{- '<|eot_id|>' }}"
    "{%- for m in messages %}{%- if m.role != 'system' %}"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{%- if m.tool_calls %}{%- set call = m.tool_calls[0].function %}{%- generation %}"
    "{{- '{\"name\": \"' + call.name + '\", \"parameters\": ' }}{{- call.arguments | tojson }}{{- '}' }}"
    "{%- endgeneration %}"
    "{%- elif m.role == 'assistant' %}{%- generation %}{{- m.content | trim }}{%- endgeneration %}"
    "{%- else %}{{- m.content | trim }}{%- endif %}{{- '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)

# Gemma: no system turn, turns must alternate, the assistant is the model
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}{{ '<start_of_turn>' + role + '\n' }}"
    "{% if role == 'model' %}{% generation %}{{ m['content'] | trim }}{% endgeneration %}"
    "{% else %}{{ m['content'] | trim }}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# Mistral: the system text stands in the last user turn
MISTRAL = (
    "{{- bos_token }}{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}"
    "{%- for m in turns %}{%- if m.role == 'user' %}"
    "{%- if loop.last or (loop.index == loop.length - 1) and system is defined %}"
    "{{- '[INST] ' + (system + '\n\n' if system is defined else '') + m.content + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + m.content + '[/INST]' }}{%- endif %}"
    "{%- elif m.role == 'assistant' %}{{- ' ' }}{%- generation %}{{- m.content }}{%- endgeneration %}{{- eos_token }}"
    "{%- endif %}{%- endfor %}"
)

# Qwen3: reasoning before the last question is dropped, whether it is a field or stands in the content
QWEN3 = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}"
    "{%- endif %}{%- endfor %}{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}{%- set content = m.content %}{%- set reasoning = '' %}"
    "{%- if m.reasoning_content is string %}{%- set reasoning = m.reasoning_content %}"
    "{%- elif '</think>' in content %}"
    "{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>assistant\n' }}{%- generation %}"
    "{%- if loop.index0 > ns.last and (loop.last or reasoning) %}"
    "{{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- content }}{%- endif %}"
    "{%- if m.tool_calls %}{%- for call in m.tool_calls %}{%- set f = call.function %}"
    '{{- \'\n<tool_call>\n{"name": "\' + f.name + \'", "arguments": \' }}'
    "{%- if f.arguments is string %}{{- f.arguments }}{%- else %}{{- f.arguments | tojson }}{%- endif %}"
    "{{- '}\n</tool_call>' }}{%- endfor %}{%- endif %}{%- endgeneration %}{{- '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}{{- '<|im_start|>user\n<tool_response>\n' + m.content }}"
    "{{- '\n</tool_response><|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}"
    "{%- endif %}{%- endif %}"
)

ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# DeepSeek R1: what was thought is cut off, up to the closing tag
DEEPSEEK = (
    "{{- bos_token }}{%- for m in messages %}"
    "{%- if m.role == 'system' %}{{- m.content }}"
    "{%- elif m.role == 'user' %}{{- '<|User|>' + m.content }}"
    "{%- else %}{%- set content = m.content %}"
    "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}"
    "{{- '<|Assistant|>' }}{%- generation %}{{- content }}{%- endgeneration %}{{- '<|end_of_sentence|>' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|Assistant|><think>\n' }}{%- endif %}"
)

# a template of today: content in parts, written one after the other
PARTS = (
    "{%- for m in messages %}{{- '<|' + m.role + '|>' }}"
    "{%- if m.content is string %}{%- set said = m.content %}{%- else %}{%- set all = namespace(text='') %}"
    "{%- for p in m.content %}{%- set all.text = all.text + p.text %}{%- endfor %}{%- set said = all.text %}"
    "{%- endif %}"
    "{%- if m.role == 'assistant' %}{%- generation %}{{- said }}{%- endgeneration %}{%- else %}{{- said }}{%- endif %}"
    "{{- eos_token }}{%- endfor %}"
)

ALL = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "qwen3": QWEN3,
    "zephyr": ZEPHYR,
    "deepseek": DEEPSEEK,
    "parts": PARTS,
}
NO_SYSTEM = {"gemma"}
