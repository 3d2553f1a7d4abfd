"""One adapter whose rank is split among experts, which a router in each layer weighs by its input.

All experts answer every token, as much as the router of the layer gives them: no one is left out,
and nothing balances them. Experts and routers learn on every task; nothing else holds old tasks.
Paper: MoELoRA as the baseline of CoIN, Chen et al. 2024 (arXiv 2403.08350), and of LCIA.

    L = CE(task), with a layer's answer W x + alpha / r * sum over e of softmax(R x)_e B_e A_e x
Departs: the router reads its layer's input after the adapter's dropout, where the released code
reads it before; without dropout they are the same.
Cost: one more matrix (experts, in) a layer; its product and a softmax for each token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from perdure.protocol.method import Method, MethodConfig

if TYPE_CHECKING:
    from perdure.protocol.context import Context


class MoELoRAConfig(MethodConfig):
    experts: int = Field(
        4, ge=1, description="parts of the adapter's rank, which they must divide; 1 is plain LoRA"
    )


class MoELoRA(Method):
    Config = MoELoRAConfig
    config: MoELoRAConfig
    adapters = True
    noop_options: ClassVar = {"experts": 1}

    @property
    def rank_parts(self) -> int:  # type: ignore[override]
        return self.config.experts

    def begin_task(self, ctx: Context) -> None:
        for name in ctx.adapters.names:
            ctx.adapters.split(name, self.config.experts)
