"""A run in training: what it holds in its hands, and what a step does with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.amp import GradScaler

from pgolf.compress.grid import Grid
from pgolf.compress.weights import save_weights
from pgolf.data.dataset import Dataset
from pgolf.data.loader import BatchLoader, prefetcher
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluate import EvalResult, evaluate
from pgolf.model.gpt import GPT, build_model
from pgolf.model.load import model_from
from pgolf.optim.averaging import Averager
from pgolf.optim.build import build_optimizers, set_schedule
from pgolf.optim.place import place
from pgolf.optim.schedule import lr_scale, muon_momentum, muon_weight_decay, progress, rewarming, stages
from pgolf.recipe.recipe import Recipe
from pgolf.runtime.device import autocast, compiled, half_format, keep_freed_memory
from pgolf.runtime.run_files import CHECKPOINT, METRICS, MODEL, RAW
from pgolf.runtime.team import SOLO, Team
from pgolf.train.checkpoint import Clock, load_checkpoint, save_checkpoint, set_aside
from pgolf.train.distributed import agree, shared_grid
from pgolf.train.metrics import Metrics, steps_per_reading
from pgolf.train.qat import Rounding, choose_grid, export_rounding, grid_rounding, rounded_weights
from pgolf.train.trackers import trackers


class Watcher(Protocol):
    """Is told how training goes, to show it."""

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """A step is finished; the loss (nats per target) may be some steps old on a device."""

    def validation(self, step: int, result: EvalResult) -> None:
        """The raw weights were validated."""

    def evaluation(self, what: str, done: int, total: int) -> None:
        """So much of another evaluation is done, in any unit."""

    def note(self, text: str) -> None:
        """Something worth a line happened."""


class Stopped(Exception):
    """A rank was asked to stop, and all of them know; what is not saved yet has to be."""


class Run:
    """The state of a training run in its folder.

    Args:
        recipe: what to do.
        dataset: training shards, validation shards, tokenizer.
        folder: the run folder; checkpoints and metrics are kept there.
        device: where to compute.
        initial: weights to start from instead of random ones.
        resume: continue from the folder's checkpoint, if it has one.
        team: the ranks that train together. All hold the whole state, which stays equal; each computes the
            gradients of its micro-batches. Once this returns, every rank has read the folder.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        folder: Path,
        device: torch.device,
        initial: dict[str, Tensor] | None = None,
        resume: bool = False,
        team: Team = SOLO,
    ) -> None:
        self.recipe, self.dataset, self.folder, self.device, self.team = recipe, dataset, folder, device, team
        if device.type == "cpu":
            keep_freed_memory()
        self.network = place(_initial_model(recipe, initial), recipe, device)
        self.forward: Callable[..., Tensor] = compiled(self.network, device, recipe.train.compile)
        self.optimizers = build_optimizers(self.network, recipe, team)
        self.averager = Averager(recipe.average, self.network.state_dict(), recipe.train.steps)
        loader = BatchLoader(dataset.train_stream(), recipe.train, team.rank, team.size)
        self.batches = prefetcher(loader, device)
        self.validation_text = dataset.validation_text(recipe.evaluation_length)
        self.rounding: Mapping[str, Rounding] = {}  # what forward passes do to which parameters
        self.grid: Grid | None = None  # on which they round, once it is frozen
        self.clock = Clock()
        # Small gradients vanish in float16: there the loss is scaled, and a step that overflows is left out.
        self.scaler = GradScaler(device.type, enabled=half_format(device) == torch.float16)
        if resume and self._checkpoint.is_file():
            state = self.network, self.optimizers, self.averager
            self.clock, self.grid = load_checkpoint(self._checkpoint, *state, recipe, dataset)
            if self.clock.scaler:
                self.scaler.load_state_dict(self.clock.scaler)
        self.team.copy_first(list(self.network.state_dict().values()))
        path = folder / METRICS if team.is_first else None
        told = trackers(recipe, folder, self.clock.step) if team.is_first else None
        reading = steps_per_reading(device)
        self.metrics = Metrics(path, self.clock.step, recipe.train.batch_tokens, told, reading)
        done = self._progress()
        self.passes = recipe.model.loop.passes_at(done)  # through looped layers, in training
        self.length = recipe.train.length_at(done)  # of training sequences
        self._compiled: set[tuple[bool, bool, int, int]] = set()  # which kinds of forward pass

    @property
    def _checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    def is_finished(self) -> bool:
        """Whether the steps or the wall-clock time are used up."""
        train = self.recipe.train
        out_of_time = bool(train.wallclock_seconds) and self.clock.seconds >= train.wallclock_seconds
        return self.clock.step >= train.steps or out_of_time

    def step(self, watcher: Watcher, asked_to_stop: Callable[[], bool] = lambda: False) -> bool:
        """One optimizer step: gradients, update, averages, metrics, clock.

        Args:
            watcher: told of fake quantization.
            asked_to_stop: whether this rank was; looked at when the step is done.

        Returns:
            Whether any rank was asked to stop.
        """
        train, optim, clock, started = self.recipe.train, self.recipe.optim, self.clock, time.perf_counter()
        done, scale = self._progress(), lr_scale(train, clock.step, clock.seconds)
        self.passes = self.recipe.model.loop.passes_at(done)
        self.switch_fake_quantization(scale, watcher)
        self._switch_length(train.length_at(done), watcher)
        loss = self.accumulate_gradients(clock.step)
        if train.grad_clip:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), train.grad_clip)
        rate = scale * rewarming(clock.step - clock.length_from) if clock.length_from else scale
        momentum, decay = muon_momentum(optim, clock.step), muon_weight_decay(optim, done)
        set_schedule(self.optimizers, rate, momentum, decay)
        self._update()
        clock.step += 1
        self.averager.update(self.network.state_dict(), clock.step, scale)
        self.metrics.step(clock.step, loss, rate)
        clock.seconds += time.perf_counter() - started
        clock.seconds, stopping = agree(self.team, clock.seconds, asked_to_stop())
        return stopping

    def accumulate_gradients(self, step: int) -> Tensor:
        """Backward pass over all micro-batches of a step; returns the mean loss (nats per target), a scalar.

        Each rank takes its share of them; gradients and loss are those of the whole step on every rank.
        """
        self.network.train()
        parts = self.recipe.train.micro_batches
        total = torch.zeros((), device=self.device)
        with rounded_weights(self.network, self.rounding), self.network.passing(self.passes):
            for part in range(parts // self.team.size):
                batch = self.batches.batch(step, part)
                # The same tokens, whatever the length.
                rows = (tokens.view(-1, self.length) for tokens in batch)
                pinned = self.device.type == "cuda"
                inputs, targets = (tokens.to(self.device, non_blocking=pinned) for tokens in rows)
                with autocast(self.device):
                    loss = self.forward(inputs, targets).mean() / parts
                self.scaler.scale(loss).backward()
                total += loss.detach()
        kind = self.network.fake_quant.active, bool(self.rounding), self.passes, self.length
        if kind not in self._compiled:
            self.team.meet()  # Compiling takes minutes, and not the same on every rank.
            self._compiled.add(kind)
        # Divided by the parts of the whole step, they add up to means over the step.
        gradients = [weight.grad for weight in self.network.parameters() if weight.grad is not None]
        self.team.add_up([*gradients, total])
        return total

    def _update(self) -> None:
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.network.zero_grad(set_to_none=True)

    def _progress(self) -> float:
        return progress(self.recipe.train, self.clock.step, self.clock.seconds)

    def _switch_length(self, length: int, watcher: Watcher) -> None:
        clock, self.length = self.clock, length
        if clock.length and clock.length != length:
            clock.length_from = clock.step
            watcher.note(f"sequences of {length:,} targets from step {clock.step} on")
        clock.length = length

    def switch_fake_quantization(self, scale: float, watcher: Watcher) -> None:
        """Turn fake quantization on once the learning-rate scale is low enough; sharpen soft rounding.

        On the "export" grid the model's own switch stays off: what it sees is rounded already.
        """
        qat = self.recipe.qat
        if not qat.enabled:
            return
        if self.clock.fake_quant_from < 0 and scale < qat.threshold:
            self.clock.fake_quant_from = self.clock.step + qat.delay_steps
            watcher.note(f"fake quantization from step {self.clock.fake_quant_from} on")
        active = 0 <= self.clock.fake_quant_from <= self.clock.step
        if qat.grid == "export":
            if active and not self.rounding:
                self.rounding = self._rounding_of_export(watcher)
            return
        self._set_switch(active, scale)

    def _set_switch(self, active: bool, scale: float) -> None:
        qat, switch = self.recipe.qat, self.network.fake_quant
        switch.active = active
        switch.soft_round = qat.soft_round
        if qat.soft_round and qat.threshold:
            # On the device once and for all: a pass that fetches it has to wait.
            switch.alpha = switch.alpha.to(self.device)
            switch.alpha.fill_(1.0 + 15.0 * max(0.0, 1.0 - scale / qat.threshold))

    def _rounding_of_export(self, watcher: Watcher) -> dict[str, Rounding]:
        """What packing does; under the "budget" scheme the grid is chosen here, once, and kept to the end."""
        if self.recipe.compress.scheme != "budget":
            return export_rounding(self.network, self.recipe)
        if self.grid is None:
            watcher.note("choosing the grid to round on")
            self._settle()
            try:
                # The averaged weights are what is packed.
                weights = self.averager.result(self.network.state_dict())
                self.grid = shared_grid(self.team, partial(choose_grid, weights, self.recipe, self.dataset))
            except PgolfError:
                self.save_checkpoint()  # It can still be packed under another cap.
                raise
            self.metrics.restart_clock()
        return grid_rounding(self.network, self.grid)

    def _settle(self) -> None:
        """Read the losses of all steps so far, for which a device must finish them: the clock counts it."""
        started = time.perf_counter()
        self.metrics.flush()
        waited = time.perf_counter() - started
        self.clock.seconds, _ = agree(self.team, self.clock.seconds + waited, False)

    def validate(self, asked_to_stop: Callable[[], bool] = lambda: False) -> EvalResult:
        """Standard evaluation of the raw weights, written to the metrics.

        Args:
            asked_to_stop: whether this rank was; looked at after every block of the text.

        Raises:
            Stopped: a rank was asked to stop.
            PgolfError: the loss is not a finite number.
        """
        self._settle()
        watch, text = self.unless_stopped(asked_to_stop), self.validation_text
        try:
            result = evaluate(self.network, self.recipe, *text, "standard", watch, team=self.team)
        except PgolfError as error:
            remedy = "if training diverged, lower the optim.*_lr rates"
            raise PgolfError(f"validation after step {self.clock.step}: {error}; {remedy}") from error
        self.metrics.validation(self.clock.step, result.val_loss, result.val_bpb)
        self.metrics.restart_clock()
        return result

    def unless_stopped(self, asked_to_stop: Callable[[], bool]) -> Callable[[int, int], None]:
        """What an evaluation by the whole team reports to; raises ``Stopped`` once a rank was asked to."""

        def look(done: int, total: int) -> None:
            if agree(self.team, 0.0, asked_to_stop())[1]:
                raise Stopped

        return look

    def prime_kernels(self) -> None:
        """Run warm-up steps so that compilation and autotuning are over, then put everything back.

        Without warm-up steps in the recipe one is made where the clock matters: where the first step would
        compile, or training ends by time. Nothing of it counts as training time.
        """
        train, qat = self.recipe.train, self.recipe.qat
        must = self.forward is not self.network or train.wallclock_seconds
        passes = max(train.warmup_steps, 1) if must else train.warmup_steps
        if not passes or self.is_finished():
            return
        put_back, scale = set_aside(self.network, self.optimizers), self.scaler.state_dict()
        fakes = qat.enabled and qat.grid == "int6"
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            for index, (active, looped, length) in enumerate(self._states_to_prime(passes)):
                if fakes:
                    self._set_switch(active, scale=qat.threshold)
                self.passes, self.length = looped, length
                self.accumulate_gradients(self.clock.step + index)
                self._update()
        if fakes:
            self._set_switch(False, scale=1.0)  # The next step sets it anew.
        put_back()
        self.scaler.load_state_dict(scale)
        self.metrics.restart_clock()

    def _states_to_prime(self, steps: int) -> list[tuple[bool, int, int]]:
        """Of each warm-up step: does the model fake quantization, passes through looped layers, length.

        There is a graph for each of these, so where code is compiled all that may still come are there.
        """
        qat, train, loop, done = self.recipe.qat, self.recipe.train, self.recipe.model.loop, self._progress()
        fakes = qat.enabled and qat.grid == "int6"
        active = fakes and 0 <= self.clock.fake_quant_from <= self.clock.step
        states = [(active, loop.passes_at(done), train.length_at(done))] * steps
        if self.forward is not self.network:
            kinds = (active, True) if fakes and qat.threshold > 0 else (active,)
            shapes: list[tuple[int, int]] = []
            for _, end, looped, length in stages(train, loop):
                if end > done:
                    # Where both change at once, one step has a pair of its own.
                    shapes += [(looped, length), (loop.passes_at(end), train.length_at(end))]
            to_come = dict.fromkeys((kind, *shape) for shape in shapes for kind in kinds)
            states += [state for state in to_come if state not in states]
        return states

    def save_checkpoint(self, path: Path | None = None) -> None:
        """Write the whole state, by default as the one to resume from, replacing the previous one.

        Raises:
            PgolfError: a weight is no finite number; a checkpoint that is there stays.
        """
        self._settle()
        self.check_weights()
        self.clock.scaler = self.scaler.state_dict()
        trained, made = (
            (self.network, self.optimizers, self.averager, self.clock),
            (self.recipe, self.dataset),
        )
        self.team.first(partial(save_checkpoint, path or self._checkpoint, *trained, *made, self.grid))
        self.metrics.restart_clock()

    def check_weights(self) -> None:
        """See that the weights are worth to be saved.

        Raises:
            PgolfError: one is no finite number; on every rank.
        """
        if not all(bool(weight.isfinite().all()) for weight in self.network.state_dict().values()):
            raise PgolfError(
                f"after step {self.clock.step} the weights are not finite numbers; lower the optim.*_lr rates"
            )

    def remove_checkpoint(self) -> None:
        """Delete the checkpoint to resume from, once nothing is left to be done."""
        self._checkpoint.unlink(missing_ok=True)

    def save_weights(self) -> Path:
        """Write the averaged weights, whose path is returned, and the last ones beside them."""
        self.metrics.flush()
        self.team.first(self._save_weights)
        return self.folder / MODEL

    def _save_weights(self) -> None:
        digest, raw = self.dataset.tokenizer.digest, self.network.state_dict()
        save_weights(self.folder / RAW, raw, self.recipe, digest, self.grid)
        save_weights(self.folder / MODEL, self.averager.result(raw), self.recipe, digest, self.grid)


def _initial_model(recipe: Recipe, initial: dict[str, Tensor] | None) -> GPT:
    if initial is None:
        return build_model(recipe.model, recipe.train.seed)
    return model_from(recipe.model, initial)
