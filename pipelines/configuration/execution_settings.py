"""The settings of ``train`` that choose how, and on which devices, a network is computed."""

from typing import Literal, Self

from pydantic import BaseModel, model_validator

from alexnet.shards.order import MICROBATCHES
from pipelines.configuration.setting_types import (
    Device,
    OneOrTwo,
    Precision,
    Switch,
    Workers,
    option,
)


class ExecutionSettings(BaseModel):
    """A part of the settings of ``train``."""

    precision: Precision = option(
        "float32",
        "how training multiplies: in float32 as in 2012, in TF32 (on GPUs), or in bfloat16",
        result=True,
    )
    gradient_compression: Literal["none", "fp16", "bf16"] = option(
        "none", "number format of gradients on their way between workers", result=True
    )
    channels_last: Switch = option(
        False,
        "layout in memory of images, activations and weights on GPUs: off is NCHW, on is NHWC, "
        "which suits tensor cores; on CPUs it concerns the weights alone",
        result=True,
    )
    compile: Switch = option(
        False, "on: the towers through torch.compile, if the machine has a compiler", result=True
    )
    exact: Switch = option(
        False,
        "on: the weights and curves are the same to the bit for one to four workers, on CPUs of "
        "one kind; an update takes longer",
        result=True,
    )
    decode_on: Literal["cpu", "gpu"] = option(
        "cpu",
        "gpu: training images are decoded by nvJPEG, for machines with fewer than four CPU cores "
        "for each GPU; pixels differ slightly; no training with it has been run so far",
        result=True,
    )
    num_workers: Workers = option(
        1, "workers that share each batch; 1:4: as many of one to four as the cluster has room for"
    )
    device: Device = option("auto", "cuda: two GPUs for each worker; auto: GPUs if there are any")
    gpus_per_worker: OneOrTwo = option(
        2, "1 puts both towers on one GPU, for machines that have no second"
    )

    @model_validator(mode="after")
    def _exact_excludes_some_options(self) -> Self:
        if not self.exact:
            return self
        if self.num_workers[1] > MICROBATCHES:
            raise ValueError(
                f"--exact on works with {MICROBATCHES} workers at most; lower --num-workers"
            )
        others = {
            "--device cuda": self.device == "cuda",
            "--compile on": self.compile,
            f"--gradient-compression {self.gradient_compression}": (
                self.gradient_compression != "none"
            ),
        }
        for option_given, is_given in others.items():
            if is_given:
                raise ValueError(f"--exact on and {option_given} exclude each other")
        return self
