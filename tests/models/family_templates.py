"""Chat templates with the behaviour of public ones, in words of our own: what they write, trim,
refuse, and read from the clock. Tools and images, which no training row here has, are left out.

`rstrip`, `first` and so on are Jinja's; "\\n" inside quotes is an escape that Jinja reads.
"""

# No role but user and assistant, in turns; each user's turn has a BOS, the system text is in it.
LLAMA_2 = r"""
{%- set talk = messages -%}{%- set head = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set head = '<<SYS>>\n' ~ messages[0].content ~ '\n<</SYS>>\n\n' -%}
  {%- set talk = messages[1:] -%}
{%- endif -%}
{%- for turn in talk -%}
  {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('user and assistant have to take turns') -}}
  {%- endif -%}
  {%- if turn.role == 'user' -%}
    {{- bos_token ~ '[INST] ' ~ ((head if loop.first else '') ~ turn.content).strip() -}}
    {{- ' [/INST]' -}}
  {%- else -%}
    {{- ' ' ~ turn.content.strip() ~ ' ' ~ eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""

_LLAMA_3_TURNS = r"""
{%- set talk = messages -%}{%- set own = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set own = messages[0].content | trim -%}{%- set talk = messages[1:] -%}
{%- endif -%}
{{- bos_token ~ '<|start_header_id|>system<|end_header_id|>\n\n' -}}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: ' ~ date_string ~ '\n\n' -}}
{{- own ~ '<|eot_id|>' -}}
{%- for turn in talk -%}
  {{- '<|start_header_id|>' ~ turn.role ~ '<|end_header_id|>\n\n' -}}
  {{- turn.content | trim ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}
"""
# The date is a variable with a default ...
LLAMA_3_1 = (
    r"{%- if date_string is not defined -%}{%- set date_string = '26 Jul 2024' -%}{%- endif -%}" + _LLAMA_3_TURNS
)
# ... or the clock's.
LLAMA_3_2 = (
    r"{%- if date_string is not defined -%}"
    r"{%- set date_string = strftime_now('%d %b %Y') if strftime_now is defined"
    r" else '26 Jul 2024' -%}{%- endif -%}" + _LLAMA_3_TURNS
)

# A text of its own where there is no system message.
_CHATML_WITH_DEFAULT = r"""
{%%- if messages[0].role != 'system' -%%}
  {{- '<|im_start|>system\n%s<|im_end|>\n' -}}
{%%- endif -%%}
{%%- for turn in messages -%%}
  {{- '<|im_start|>' ~ turn.role ~ '\n' ~ turn.content ~ '<|im_end|>\n' -}}
{%%- endfor -%%}
{%%- if add_generation_prompt -%%}{{- '<|im_start|>assistant\n' -}}{%%- endif -%%}
"""
QWEN_2_5 = _CHATML_WITH_DEFAULT % "You are Qwen. You help."
SMOLLM_2 = _CHATML_WITH_DEFAULT % "You are SmolLM. You help."

# Reasoning is written again after the last question only, and there always, empty or not.
_QWEN_3_TURNS = r"""
{%- set last = namespace(question=0) -%}
{%- for turn in messages -%}
  {%- if turn.role == 'user' -%}{%- set last.question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for turn in messages -%}
  {%- set words = turn.content -%}{%- set thoughts = '' -%}
  {%- if turn.role == 'assistant' and '</think>' in words -%}
    {%- set thoughts = words.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
    {%- set words = words.split('</think>')[-1].lstrip('\n') -%}
  {%- endif -%}
  {{- '<|im_start|>' ~ turn.role ~ '\n' -}}
  {%- if turn.role == 'assistant' and loop.index0 > last.question -%}
    {{- '<think>\n' ~ thoughts ~ '\n</think>\n\n' -}}
  {%- endif -%}
  {{- words ~ '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
"""
QWEN_3 = (
    _QWEN_3_TURNS
    + r"""
  {%- if enable_thinking is defined and enable_thinking is false -%}
    {{- '<think>\n\n</think>\n\n' -}}
  {%- endif -%}
{%- endif -%}
"""
)
QWEN_3_THINKING = _QWEN_3_TURNS + r"{{- '<think>\n' -}}{%- endif -%}"

_GEMMA_TURNS = r"""
{{- bos_token -}}
{%- for turn in talk -%}
  {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('user and assistant have to take turns') -}}
  {%- endif -%}
  {{- '<start_of_turn>' ~ ('model' if turn.role == 'assistant' else turn.role) ~ '\n' -}}
  {{- (head if loop.first else '') ~ turn.content | trim ~ '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}
"""
GEMMA_2 = (
    r"{%- if messages[0].role == 'system' -%}{{- raise_exception('no system role') -}}{%- endif -%}"
    r"{%- set talk = messages -%}{%- set head = '' -%}" + _GEMMA_TURNS
)
GEMMA_3 = (
    r"{%- set talk = messages -%}{%- set head = '' -%}"
    r"{%- if messages[0].role == 'system' -%}"
    r"{%- set head = messages[0].content ~ '\n\n' -%}{%- set talk = messages[1:] -%}"
    r"{%- endif -%}" + _GEMMA_TURNS
)

# No generation prompt: "[/INST]" asks. A space before the next turn, none before the answer.
MISTRAL_1 = r"""
{{- bos_token -}}
{%- for turn in messages -%}
  {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('user and assistant have to take turns') -}}
  {%- endif -%}
  {%- if turn.role == 'user' -%}{{- '[INST] ' ~ turn.content ~ ' [/INST]' -}}
  {%- else -%}{{- turn.content ~ eos_token ~ ' ' -}}{%- endif -%}
{%- endfor -%}
"""
# The system text is written before the last message, if that is the user's.
MISTRAL_3 = r"""
{%- set talk = messages -%}
{%- if messages[0].role == 'system' -%}
  {%- set own = messages[0].content -%}{%- set talk = messages[1:] -%}
{%- endif -%}
{{- bos_token -}}
{%- for turn in talk -%}
  {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('user and assistant have to take turns') -}}
  {%- endif -%}
  {%- if turn.role == 'user' -%}
    {{- '[INST] ' ~ (own ~ '\n\n' if loop.last and own is defined else '') -}}
    {{- turn.content ~ '[/INST]' -}}
  {%- else -%}{{- ' ' ~ turn.content | trim ~ eos_token -}}{%- endif -%}
{%- endfor -%}
"""
# A system role, and without a system message a text with today's date.
MISTRAL_7 = r"""
{%- set own = 'You are Mistral. The current date is ' ~ strftime_now('%Y-%m-%d') ~ '.' -%}
{%- set talk = messages -%}
{%- if messages[0].role == 'system' -%}
  {%- set own = messages[0].content -%}{%- set talk = messages[1:] -%}
{%- endif -%}
{{- bos_token ~ '[SYSTEM_PROMPT]' ~ own ~ '[/SYSTEM_PROMPT]' -}}
{%- for turn in talk -%}
  {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('user and assistant have to take turns') -}}
  {%- endif -%}
  {%- if turn.role == 'user' -%}{{- '[INST]' ~ turn.content ~ '[/INST]' -}}
  {%- else -%}{{- turn.content ~ eos_token -}}{%- endif -%}
{%- endfor -%}
"""

# EOS after the last turn, but not where an answer is asked for.
PHI_3 = r"""
{%- for turn in messages -%}
  {{- '<|' ~ turn.role ~ '|>\n' ~ turn.content ~ '<|end|>\n' -}}
{%- endfor -%}
{{- '<|assistant|>\n' if add_generation_prompt else eos_token -}}
"""
PHI_4 = r"""
{%- for turn in messages -%}
  {{- '<|im_start|>' ~ turn.role ~ '<|im_sep|>' ~ turn.content ~ '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant<|im_sep|>' -}}{%- endif -%}
"""

# An answer loses its reasoning, and the generation prompt begins one.
DEEPSEEK_R1 = r"""
{{- bos_token -}}
{%- for turn in messages -%}
  {%- if turn.role == 'system' -%}{{- turn.content -}}
  {%- elif turn.role == 'user' -%}{{- '<BARUserBAR>' ~ turn.content -}}
  {%- else -%}
    {{- '<BARAssistantBAR>' ~ turn.content.split('</think>')[-1] ~ '<BARend▁of▁sentenceBAR>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<BARAssistantBAR><think>\n' -}}{%- endif -%}
""".replace("BAR", "\uff5c")  # a full-width bar

# The date, the mode of reasoning (which the system text may set), and marks around an assistant's
# whole turn: its header and the line break behind it are inside of them.
SMOLLM_3 = r"""
{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- set mode = '/think' if enable_thinking else '/no_think' -%}
{%- set own = '' -%}
{%- if messages[0].role == 'system' -%}
  {%- set own = messages[0].content -%}
  {%- if '/no_think' in own -%}{%- set mode = '/no_think' -%}
  {%- elif '/think' in own -%}{%- set mode = '/think' -%}{%- endif -%}
  {%- set own = own.replace('/no_think', '').replace('/think', '').rstrip() -%}
{%- endif -%}
{%- if not own -%}
  {%- set own = 'You are SmolLM.' ~ (' Think first.' if mode == '/think' else '') -%}
{%- endif -%}
{{- '<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\n' -}}
{{- 'Today Date: ' ~ strftime_now('%d %B %Y') ~ '\nReasoning Mode: ' ~ mode ~ '\n\n' -}}
{{- '## Custom Instructions\n\n' ~ own ~ '\n\n<|im_end|>\n' -}}
{%- set empty = '' if mode == '/think' else '<think>\n\n</think>\n' -%}
{%- for turn in messages -%}
  {%- if turn.role == 'user' -%}
    {{- '<|im_start|>user\n' ~ turn.content ~ '<|im_end|>\n' -}}
  {%- elif turn.role == 'assistant' -%}
    {%- generation -%}
    {{- '<|im_start|>assistant\n' ~ empty ~ turn.content.lstrip('\n') ~ '<|im_end|>\n' -}}
    {%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' ~ empty -}}{%- endif -%}
"""

# The date is in the default system text only.
GRANITE_3 = r"""
{%- set own = "Knowledge Cutoff Date: April 2024.\nToday's Date: " ~ strftime_now('%B %d, %Y')
   ~ ".\nYou are Granite. You help." -%}
{%- set talk = messages -%}
{%- if messages[0].role == 'system' -%}
  {%- set own = messages[0].content -%}{%- set talk = messages[1:] -%}
{%- endif -%}
{{- '<|start_of_role|>system<|end_of_role|>' ~ own ~ '<|end_of_text|>\n' -}}
{%- for turn in talk -%}
  {{- '<|start_of_role|>' ~ turn.role ~ '<|end_of_role|>' ~ turn.content ~ '<|end_of_text|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_of_role|>assistant<|end_of_role|>' -}}
{%- endif -%}
"""

# The system message is the template's own, ours is the developer's. An answer names its channel;
# the last one ends with <|return|>, which no prompt contains, each earlier one with <|end|>.
GPT_OSS = r"""
{%- set talk = messages -%}
{{- '<|start|>system<|message|>You are ChatGPT.\nKnowledge cutoff: 2024-06\nCurrent date: ' -}}
{{- strftime_now('%Y-%m-%d') -}}
{%- if reasoning_effort is not defined -%}{%- set reasoning_effort = 'medium' -%}{%- endif -%}
{{- '\n\nReasoning: ' ~ reasoning_effort ~ '\n\n# Valid channels: analysis, commentary, final.' -}}
{{- '<|end|>' -}}
{%- if messages[0].role in ('system', 'developer') -%}
  {%- set talk = messages[1:] -%}
  {{- '<|start|>developer<|message|># Instructions\n\n' ~ messages[0].content ~ '\n\n<|end|>' -}}
{%- endif -%}
{%- for turn in talk -%}
  {%- if turn.role == 'assistant' -%}
    {{- '<|start|>assistant<|channel|>final<|message|>' ~ turn.content -}}
    {{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' -}}
  {%- else -%}
    {{- '<|start|>' ~ turn.role ~ '<|message|>' ~ turn.content ~ '<|end|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""

# Roles in plain words; only the end of an answer is a special token ...
VICUNA = r"""
{%- set talk = messages -%}{%- set own = 'A chat between a user and an assistant.' -%}
{%- if messages[0].role == 'system' -%}
  {%- set own = messages[0].content -%}{%- set talk = messages[1:] -%}
{%- endif -%}
{{- bos_token ~ own -}}
{%- for turn in talk -%}
  {%- if turn.role == 'user' -%}{{- ' USER: ' ~ turn.content | trim -}}
  {%- else -%}{{- ' ASSISTANT: ' ~ turn.content | trim ~ eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}
"""
# ... or nothing is.
PLAIN_ROLES = r"""
{%- for turn in messages -%}
  {{- '### ' ~ turn.role | capitalize ~ ':\n' ~ turn.content ~ '\n\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Assistant:\n' -}}{%- endif -%}
"""
