"""prompt -> ids -> text features -> noise -> denoise loop -> pixels -> picture and report: the whole story.

`load` gives a `Pipeline` that stays warm; api.generate uses one once. The pipeline decides what is in memory when;
families do the arithmetic. Longer than most, so that the story is in one place.
"""

import functools
import os
import threading
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Unpack, overload

import mlx.core as mx
import numpy as np
from PIL import Image

from .errors import CheckpointError, InsufficientMemoryError, RequestError, file_errors
from .escaping import quoted
from .families import family_spec, open_family
from .families.base import Denoiser, Family, LastValueCache, Prompt, RunBranches, Settings
from .families.controls import ControlNetwork, EncodedControl
from .families.image_prompts import AdapterSource, ImageAdapter
from .hub.comfy import using_folder
from .hub.download import Notify, files_of, identify, notify_stderr
from .hub.manifest import Model
from .hub.networks import locate_network
from .hub.record import record_of, revision_of
from .image import laid_over, to_image, to_layers
from .kernels import choose
from .limits import bound_cache, is_out_of_memory, run_limits
from .loading.transforms import Progress
from .loading.weights import WeightTransforms
from .lora.match import Lora, match_loras, module_names
from .lora.merge import Merge, Wanted, apply_loras, open_loras, own_loras
from .lora.source import Source
from .masks import Velocity, keep_outside
from .packing.recipes import canonical_name, read_recipe, recipe_of
from .planning.fitting import Residency, check_fits, ran_out, residency
from .planning.plan import Plan, loaded_linears
from .precision import ASKED, Precision, denoiser_precision
from .preflight import refuse_before_download
from .previews import FULL, TINY, latent_colours, tiny_decoder, tiny_file
from .report import Report
from .request.inputs import check_mask, check_noise
from .request.job import Job, is_single, resolve
from .request.known_words import unknown_words_note
from .request.options import check_callable, check_types
from .request.parameters import DEFAULT_MODEL, PICTURE_ROWS, LoadParameters, PictureParameters
from .request.signatures import documented
from .request.sizes import check_multiple
from .result import OnStep, Result, StepEvent
from .sampling import Schedule, denoise
from .seams import blend_seams
from .text.generation import OnToken
from .upsampling.api import open_upsampler


@documented()
@file_errors()
def load(
    model: str | Path | None = None,
    *,
    quant: str | None = None,
    lora: Sequence[Wanted] | None = None,
    precision: str | None = None,
    lora_partial: bool = False,
    resident: bool | None = None,
    comfy: str | Path | None = None,
    on_load: Progress | None = None,
    on_download: Notify | None = None,
) -> "Pipeline":
    """Opens a model and checks its files; weights are read when a stage first needs them."""
    return load_on_hosts(
        (), model=model, quant=quant, lora=lora, precision=precision, lora_partial=lora_partial, resident=resident,
        comfy=comfy, on_load=on_load, on_download=on_download,
    )  # fmt: skip


@file_errors()
def load_on_hosts(memories: Sequence[int], /, **asked: Unpack[LoadParameters]) -> "Pipeline":
    """`load`, of a model that need not fit one machine where its layers can be shared out over several. `memories`: the
    bytes that each gives; none: this machine has it alone."""
    on_load, on_download = asked.get("on_load"), asked.get("on_download")
    check_callable(on_load=on_load, on_download=on_download)
    check_types({name: asked.get(name) for name in ("quant", "precision", "lora_partial", "resident")})
    model, lora, on_download = asked.get("model"), asked.get("lora"), on_download or notify_stderr
    quant, lora_partial = recipe_of(asked.get("quant")), asked.get("lora_partial", False)
    opening = Report()  # downloads are no part of loading
    with using_folder(asked.get("comfy")):
        loras = open_loras(() if lora is None else lora, on_download)
        with opening.stage("load"):
            found = identify(str(DEFAULT_MODEL if model is None else model))
            spec = family_spec(found.manifest.family)
            chosen = denoiser_precision(asked.get("precision"), spec.title, spec.fits_float16, spec.overflowing)
            refuse_before_download(found, quant, loras, lora_partial, memories)
        folder = files_of(found, on_download)
    with opening.stage("load"):
        bound_cache()
        source = Source(folder, found.manifest)
        merge = Merge(source)
        recipe = None if quant is None else read_recipe(quant, found.manifest.family)
        transforms = WeightTransforms((merge,), progress=on_load)
        family = open_family(found.manifest, folder, (recipe or source).applied_to(transforms, merge.measure))
        for note in recipe.unused_rows(family.weights) if recipe else _unpacked_lines(family):
            on_download(f"note: {note}")
        pipeline = Pipeline(found, folder, family, asked.get("resident"), merge, quant, source)
        pipeline.precision = chosen
        family.use_precision(chosen.dtype)
        pipeline._choose(loras, lora_partial, on_download)
    pipeline.opening_seconds = opening.load_seconds
    return pipeline


def _unpacked_lines(family: Family[Any]) -> Iterator[str]:
    for component, weights in family.weights.items():
        if formats := weights.unpacked_formats:
            listed = ", ".join(f"{count} in {name}" for name, count in formats.items())
            yield (
                f"{component}: weights are unpacked, for MLX has no packing for their format ({listed}); a recipe "
                "(quant, --quant q6) packs them while they are loaded"
            )


class Start(NamedTuple):
    """Where a picture's loop begins, in its layout."""

    x: mx.array
    noise: mx.array  # at sigma 1
    clean: mx.array | None = None  # the picture it starts from
    mask: mx.array | None = None  # where it draws; None: everywhere
    condition: Any = None  # what the denoiser is shown
    controls: tuple[EncodedControl, ...] = ()  # what its control networks are shown

    def masked(self, velocity: Velocity, schedule: Schedule) -> Velocity:
        if self.mask is None or self.clean is None:
            return velocity
        return keep_outside(velocity, self.mask, self.clean, schedule.sigmas)


class Pipeline:
    """A model that is open, and stays as warm as memory allows."""

    def __init__(
        self,
        model: Model,
        folder: Path,
        family: Family[Any],
        resident: bool | None,
        merge: Merge | None = None,
        quant: str | None = None,
        source: Source | None = None,
    ):
        self.model = model
        self.folder = folder
        self.family = family
        self.resident = resident
        self.residency = Residency(False, False, "no picture was asked for yet")
        self.merge = merge or Merge()
        self.quant = quant
        self.precision = Precision(family.transformer.dtype)
        self._source = source or Source(folder, model.manifest)
        self._turn = threading.RLock()  # of threads: memory is counted for one request at a time
        self._branches: dict[Hashable, Any] = {}  # what was encoded for the latest request
        self._networks: dict[str, ControlNetwork] = {}  # opened so far, by the names that they were asked for
        self._adapters: dict[AdapterSource, ImageAdapter[Any]] = {}  # the same
        self._captions: dict[Hashable, str] = {}  # of the latest request's prompts
        self.on_token: OnToken | None = None  # called with how many tokens of a caption are written
        self._denoisers = LastValueCache()  # one alone: tables are large
        self.run_branches: RunBranches | None = None  # as the denoisers have it
        self._process = os.getpid()
        self.opening_seconds = 0.0  # reading configs and headers: a part of the first picture's loading

    def __repr__(self) -> str:
        return f"Pipeline({self.model.requested_as!r}{f', quant={self.quant!r}' if self.quant else ''})"

    @overload
    def generate(
        self, prompt: str, *, seed: int | None = None, count: None = None,
        on_step: OnStep | None = None, **parameters: Unpack[PictureParameters],
    ) -> Result: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: str, *, seed: Sequence[int], count: None = None,
        on_step: OnStep | None = None, **parameters: Unpack[PictureParameters],
    ) -> list[Result]: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: str, *, seed: int | None = None, count: int,
        on_step: OnStep | None = None, **parameters: Unpack[PictureParameters],
    ) -> list[Result]: ...  # fmt: skip

    @overload
    def generate(
        self, prompt: list[str] | tuple[str, ...], *, seed: int | Sequence[int] | None = None, count: int | None = None,
        on_step: OnStep | None = None, **parameters: Unpack[PictureParameters],
    ) -> list[Result]: ...  # fmt: skip

    @documented(*PICTURE_ROWS)
    @file_errors()
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] | None = None,
        count: int | None = None,
        on_step: OnStep | None = None,
        **parameters: Any,
    ) -> Result | list[Result]:
        """One picture, or a list for several prompts, seeds or a count. Threads may share a pipeline, in turns."""
        jobs = self.jobs(prompt, seed=seed, count=count, **parameters)
        with self._turn:
            results = list(self.stream(jobs, on_step))
        return results[0] if is_single(prompt, seed, count) else results

    @file_errors()
    def set_lora(
        self, lora: Sequence[Wanted] = (), lora_partial: bool = False, on_download: Notify = notify_stderr
    ) -> None:
        """Merges these LoRAs in place of the former ones: files, or (file, scale), added up.

        A file is a path, or `owner/repository:file`. What is loaded is read again only where a change touches it.
        `lora_partial`: allow files of which a part fits no module of this model, and merge the rest.
        """
        check_types({"lora_partial": lora_partial})
        loras = open_loras(lora, on_download)
        with self._turn:
            self._choose(loras, lora_partial, on_download)

    def _choose(self, chosen: Sequence[Lora], partial: bool, on_download: Notify) -> None:
        loras = [*own_loras(self.model.manifest, on_download), *chosen]
        known, title = module_names(self.family), self.family.spec.title
        matches = match_loras(loras, known, title, partial)
        before = match_loras(self._source.merged_before(matches, self.family, on_download), known, title, partial=True)
        names = [match.lora.file.path.name for match in matches if not match.lora.own]
        for note in self.family.lora_notes(self.model.manifest, names):
            on_download(f"note: {note}")
        if apply_loras(self.family, self.merge, matches, before):
            self._forget()

    @documented(*PICTURE_ROWS)
    @file_errors()
    def jobs(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] | None = None,
        count: int | None = None,
        **parameters: Unpack[PictureParameters],
    ) -> list[Job]:
        """A request's pictures with every parameter resolved and checked, for `stream`; nothing is loaded."""
        return self.check(resolve(self.model.manifest, self.family.size_multiple, prompt, seed, count, **parameters))

    def check(self, jobs: list[Job]) -> list[Job]:
        """The jobs of one request, after the checks that need the open model; `jobs` calls it."""
        for job in jobs[:1]:
            check_multiple(self.model.manifest, self.family.size_multiple, job.settings.width, job.settings.height)
            self.family.schedule(job.settings)  # a folded checkpoint has only one
            check_noise(job.noise, job.step_noise, self.family.shape(job.settings))
            inputs = job.inputs()
            check_mask(inputs.mask, self.family.shape(job.settings))
            self.family.check_inputs(inputs)
            for name, network in self._networks_of(jobs).items():
                for control in inputs.controls:
                    if control.network == name:
                        network.check(control, inputs.mask is not None, job.strength)
        self._adapters_of(jobs)
        return jobs

    @property
    def _recipe(self) -> str | None:
        """That the model is packed by, while it is loaded or on the disk."""
        return self.quant or record_of(self.folder).get("recipe")

    def _networks_of(self, jobs: Sequence[Job]) -> dict[str, ControlNetwork]:
        """The control networks that these pictures name, opened once and packed as the model is."""
        names = dict.fromkeys(control.model for job in jobs for control in job.controls if control.model)
        for name in names:
            if name not in self._networks:
                folder = locate_network(name, self.model.manifest)
                quant, transforms = self._recipe, WeightTransforms()
                transforms = read_recipe(quant, self.family.name).applied_to(transforms) if quant else transforms
                self._networks[name] = self.family.open_control(name, folder, transforms)
        return {name: self._networks[name] for name in names}

    def _adapters_of(self, jobs: Sequence[Job]) -> dict[AdapterSource, ImageAdapter[Any]]:
        """The image adapters that these pictures name, opened once; they run once a prompt, and are never packed."""
        sources = dict.fromkeys(image.adapter for job in jobs for image in job.prompt.images)
        for source in sources:
            if source not in self._adapters:
                folder = locate_network(source.name, self.model.manifest, source.parameter)
                self._adapters[source] = self.family.open_adapter(source, folder)
        return {source: self._adapters[source] for source in sources}

    def plans(self, jobs: Sequence[Job]) -> list[tuple[Plan, Job]]:
        """One for each size among the jobs; raises for a picture that this machine cannot hold."""
        self.family.select_controls(self._networks_of(jobs))
        self.family.select_adapters(self._adapters_of(jobs))
        sizes = {_sizes(job): job for job in jobs}.values()
        return [(check_fits(self.family, job, self.model.manifest), job) for job in sizes]

    def stream(self, jobs: Iterable[Job], on_step: OnStep | None = None) -> Iterator[Result]:
        """The jobs' results, each as soon as memory allows: text is encoded once for all, stages are never piled up,
        and nothing is left of them where memory is short, even if the caller stops half-way. Other threads wait until
        it has ended or is closed."""
        jobs = _checked_jobs(jobs, self.model.manifest.name)
        if on_step is not None and not callable(on_step):
            raise RequestError(f"on_step is {quoted(on_step)}: give a function that takes one argument, a StepEvent.")
        if os.getpid() != self._process:
            raise RequestError(
                "this pipeline was opened in the process that this one was forked from, and MLX does not work on after "
                "that; load the model in this process, or start it by 'spawn'."
            )
        if jobs:
            with self._turn, file_errors():
                yield from self._stream_checked(jobs, on_step)

    def _stream_checked(self, jobs: Sequence[Job], on_step: OnStep | None) -> Iterator[Result]:
        """Decides what stays in memory, and limits MLX to what the plan says, while the pictures are drawn."""
        reports = [Report() for _ in jobs]
        reports[0].load_seconds, self.opening_seconds = self.opening_seconds, 0.0
        jobs = self._captioned(jobs, reports[0])
        with reports[0].stage("load"):
            plans = self.plans(jobs)
            self.residency = residency([made for made, _ in plans], self.resident, self.family.prompt_weight_bytes)
            self.family.keep_prompt_weights(self.residency.keep_prompt_weights)
        self._release(self.family.components, reports[0])  # what a smaller request left
        largest, job = max(plans, key=lambda pair: pair[0].peak_bytes)
        try:
            with ExitStack() as limits:
                with reports[0].stage("load"):
                    limits.enter_context(run_limits(largest.working_bytes))
                yield from self._stream(jobs, reports, on_step)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._forget()  # what was computed last may be wrong without MLX's saying so
            for component in self.family.components.values():
                component.release()
            raise InsufficientMemoryError(ran_out(largest, self.family, job, self.model.manifest)) from error
        finally:
            self._release(self.family.components, reports[-1])

    def _stream(self, jobs: Sequence[Job], reports: Sequence[Report], on_step: OnStep | None) -> Iterator[Result]:
        jobs = self._described(jobs, reports[0])
        manifest, branches = self.model.manifest, self._encode(jobs, reports[0])
        self.family.expect([branches[_key(prompt, job.settings)] for job in jobs for prompt in _prompts(job)])
        starts = self._encoded_starts(jobs, reports)
        drawn: list[tuple[Job, mx.array, Report]] = []
        for index, (job, report) in enumerate(zip(jobs, reports, strict=True)):
            report.choices["memory"] = f"{'resident' if self.residency.resident else 'staged'}: {self.residency.reason}"
            with report.stage("other"):
                unknown = [] if self.merge.record() else unknown_words_note(manifest, job.prompt.text)
                # A model of a few words has a note for prompts with others; a LoRA brings its own words.
                note = [manifest.note] if manifest.note and (unknown or not manifest.words) else []
                report.note(*note, *unknown, *job.notes)
            start = starts.pop(index, None) or self._start(job, report)
            drawn.append((job, self._denoise(job, branches, start, report, index, len(jobs), on_step), report))
            if self.residency.decode_at_once and index + 1 < len(jobs):  # what is finished is safe, whatever comes
                yield self._finish(*drawn.pop())
        self._release(self.family.stages["denoise"], reports[-1])
        for each in drawn:
            yield self._finish(*each)

    def _captioned(self, jobs: Sequence[Job], report: Report) -> list[Job]:
        """The jobs with captions in place of the prompts that are to be upsampled, each written once. The model makes
        room for it: the upsampler may be as large."""
        keys = [(job.upsampler, job.prompt.key) for job in jobs]
        self._captions = {key: caption for key, caption in self._captions.items() if key in keys}
        new = {key: job for job, key in zip(jobs, keys, strict=True) if job.upsampler and key not in self._captions}
        if new:
            self.plans(jobs)  # what does not fit is refused before minutes of writing
            for component in self.family.components.values():
                component.release()
        for name in dict.fromkeys(job.upsampler for job in new.values()):
            on_load = self.family.transformer.weights.transforms.progress
            upsampler = open_upsampler(name, self._recipe, self.model.manifest, on_load=on_load)
            with report.stage("upsample"), upsampler.staying():
                for key, job in new.items():
                    if job.upsampler == name:
                        self._captions[key] = upsampler.write(
                            job.asked, job.prompt.references, on_token=self.on_token, tell=report.note
                        )
        return [
            job.captioned(self._captions[key]) if job.upsampler else job for job, key in zip(jobs, keys, strict=True)
        ]

    def _described(self, jobs: Sequence[Job], report: Report) -> list[Job]:
        """The jobs with words for the prompts that have none, each found once."""
        keys = [_key(job.prompt, job.settings) if job.lacks_words else None for job in jobs]
        found: dict[Hashable, str] = {}
        for job, key in zip(jobs, keys, strict=True):
            if key is not None and key not in found:
                with report.stage("encode"):
                    found[key] = self.family.describe(job.prompt, job.settings, self.on_token)
                report.note(f"no prompt is given; the text encoder describes the picture: {found[key]}")
        return [job if key is None else job.captioned(found[key]) for job, key in zip(jobs, keys, strict=True)]

    def _encode(self, jobs: Sequence[Job], report: Report) -> dict[Hashable, Any]:
        """The branch of every distinct prompt, made once; then the text encoders go, unless all stages fit."""
        wanted = {_key(prompt, job.settings): (prompt, job.settings) for job in jobs for prompt in _prompts(job)}
        self._branches = branches = {key: branch for key, branch in self._branches.items() if key in wanted}
        new = {key: both for key, both in wanted.items() if key not in branches}
        if not new:
            return branches
        if with_images := [prompt for prompt, _ in new.values() if prompt.images]:
            self._load("adapters", report)
            with report.stage("encode"):
                self.family.encode_images(with_images)
            self._release(self.family.stages["adapters"], report)
        stages = self.family.encode_stages(prompt for prompt, _ in new.values())
        for stage in stages:
            self._load(stage, report)
        with report.stage("encode"):
            for key, (prompt, settings) in new.items():
                branches[key], notes = self.family.encode(prompt, settings)
                report.note(*notes)
        for stage in stages:
            self._release(self.family.stages[stage], report)
        return branches

    def _encoded_starts(self, jobs: Sequence[Job], reports: Sequence[Report]) -> dict[int, Start]:
        """Of the pictures that others are drawn from, by place: encoded before the denoiser is in memory."""
        given = [place for place, job in enumerate(jobs) if job.encodes_images]
        if not given:
            return {}
        self._load("encode_image", reports[given[0]])
        starts = {place: self._start(jobs[place], reports[place]) for place in given}
        self._release(self.family.stages["encode_image"], reports[given[-1]])
        return starts

    def _start(self, job: Job, report: Report) -> Start:
        """Noise, or a picture with as much noise as the first sigma says."""
        family, settings = self.family, job.settings
        inputs = job.inputs()
        with report.stage("encode" if job.encodes_images else "other"):
            made = family.encode_inputs(inputs, family.stream(job.seed), settings)
            drawn = made.noise if job.noise is None else mx.array(job.noise)
            noise = family.start(family.pack(drawn), settings)
            start = Start(noise, noise, condition=made.condition, controls=made.controls)
            if made.clean is not None:
                clean, sigma = family.pack(made.clean), self._schedule(job).sigmas[0]
                mask = None if made.mask is None else family.pack(mx.broadcast_to(made.mask, drawn.shape))
                mixed = sigma * noise + (1 - sigma) * clean
                start = Start(mixed, noise, clean, mask, made.condition, made.controls)
                mx.eval(start.x, noise, clean, [] if mask is None else mask)
        return start

    def _schedule(self, job: Job) -> Schedule:
        schedule = self.family.schedule(job.settings)
        return schedule if job.image is None else schedule.from_strength(job.strength)

    def _denoise(
        self,
        job: Job,
        branches: dict[Hashable, Any],
        start: Start,
        report: Report,
        index: int,
        total: int,
        on_step: OnStep | None,
    ) -> mx.array:
        family, settings = self.family, job.settings
        with report.stage("other"):
            schedule = self._schedule(job)
        self._load("prepare", report)
        with report.stage("prepare"):
            denoiser = self._denoiser(job, branches, schedule)
            denoiser.start_picture(start.condition, start.controls)
        report.choices |= denoiser.choices()
        self._load("denoise", report)
        with report.stage("prepare"):
            chosen = choose(loaded_linears(family, settings, job.prompt), self.precision.dtype)
        report.choices |= {"kernels": chosen} if chosen else {}
        report.choices |= {"precision": str(self.precision)} if self.precision.reason else {}
        with report.stage("other"):
            step_noise = None if job.step_noise is None else [mx.array(noise) for noise in job.step_noise]
            solver = family.solver(schedule, job.seed, settings, step_noise)
        try:
            with report.stage("step"):
                for step in denoise(start.masked(denoiser.velocity, schedule), start.x, schedule, solver):
                    report.step_seconds.append(step.seconds)
                    if on_step:
                        preview = functools.partial(self._preview, step.denoised, job)
                        on_step(StepEvent(index, total, step.index + 1, schedule.steps, step.seconds, preview))
        finally:
            with report.stage("other"):
                report.choices |= denoiser.end_picture()
        return step.x

    def _denoiser(self, job: Job, branches: dict[Hashable, Any], schedule: Schedule) -> Denoiser[Any]:
        """The job's, kept for the next seed of the same prompt."""
        keys = [_key(prompt, job.settings) for prompt in _prompts(job)]
        own, settings = [branches[key] for key in keys], job.settings

        def make() -> Denoiser[Any]:
            denoiser = self.family.denoiser(own, schedule, settings)
            denoiser.take_shortcuts(settings, schedule.steps)
            denoiser.run_branches = self.run_branches
            return denoiser

        shortcuts = settings.guided, settings.cache
        key = (*keys, schedule, settings.guidance, settings.cfg, *shortcuts, *self.family.controls)
        return self._denoisers.get(key, make)

    def _preview(self, x: mx.array, job: Job) -> Image.Image:
        latents = None if job.preview == FULL else self.family.unpack(x, job.settings)
        if latents is not None and job.preview == TINY:
            decoder = tiny_decoder(tiny_file(self.model.manifest), latents.shape[1])
            return to_image(np.nan_to_num(np.array(decoder.decode(latents)[0]) / 2 + 0.5))
        colours = None if latents is None else latent_colours(self.model.manifest, latents.shape[1])
        if latents is None or colours is None:
            return laid_over(to_layers(self._pixels(x, job.settings)))
        return colours.picture(np.array(latents[0].astype(mx.float32)), (job.settings.width, job.settings.height))

    def _finish(self, job: Job, x: mx.array, report: Report) -> Result:
        self._load("decode", report)
        with report.stage("decode"):
            pixels = self._pixels(x, job.settings)
            if job.blend_seams is not None and self.family.seam_pixels:
                pixels = blend_seams(pixels, self.family.seam_pixels, job.blend_seams)
            layers = to_layers(pixels)
            image = laid_over(layers)
            if job.crop is not None:
                image = image.crop(job.crop)
            if (region := job.region) is not None:
                image = region.paste(image)
        report.note(*self.merge.notes())
        with report.stage("other"):
            record = self._record(job)
        return Result(image, job.seed, report, record, tuple(layers) if pixels.ndim == 4 else ())

    def _pixels(self, x: mx.array, settings: Settings) -> np.ndarray:
        """[H, W, 3] in 0..1; as `Family.decode` has them"""
        pixels = np.array(self.family.decode(x, settings))
        if not np.isfinite(pixels).all():
            raise CheckpointError(
                "the picture came out as numbers that are no colours (NaN or infinite): the weights or a LoRA are "
                "damaged, or overflow. Download them again, leave the LoRA out, or lower its scale."
            )
        return np.clip(pixels / 2 + 0.5, 0, 1)

    def _record(self, job: Job) -> dict[str, Any]:
        manifest = self.model.manifest
        return {
            "model": self.model.requested_as,
            "manifest": manifest.name,
            "revision": revision_of(self.folder),
            "licence": manifest.licence,
            "quantization": {name: component.held_as for name, component in self.family.components.items()},
            **({"quant": canonical_name(self.quant)} if self.quant else {}),
            **({"precision": self.precision.name} if self.precision.reason == ASKED else {}),
            **self.merge.record(),
            **job.record(manifest.guidance),
        }

    def _load(self, stage: str, report: Report) -> None:
        with report.stage("load"):
            for name in self.family.stages.get(stage, ()):
                self.family.components[name].load()

    def _release(self, names: Iterable[str], report: Report) -> None:
        """Lets components go, unless all are to stay."""
        if self.residency.resident:
            return
        with report.stage("other"):
            for name in names:
                self.family.components[name].release()

    def _forget(self) -> None:
        """What was made with weights that have changed, or that may not be right."""
        self._branches = {}
        self._denoisers.forget()
        self.family.forget()


def _checked_jobs(jobs: Iterable[Job], model: str) -> list[Job]:
    made = list(jobs) if isinstance(jobs, Iterable) and not isinstance(jobs, str | bytes) else [jobs]
    if odd := [job for job in made if not isinstance(job, Job)]:
        raise RequestError(f"stream: {quoted(odd[0])}: give the list that pipeline.jobs(prompt, …) returns.")
    if other := next((job.model for job in made if job.model != model), None):
        raise RequestError(f"stream: a job is for {other}, and this pipeline is {model}; give jobs of its own.")
    return made


def _sizes(job: Job) -> Hashable:
    """All that decides how much memory a picture takes."""
    settings, sizes = job.settings, tuple(picture.size for picture in job.prompt.references)
    asked = (
        settings.width,
        settings.height,
        settings.cfg > 1,
        settings.cache,
        settings.extras.get("max_sequence_length"),
    )
    return asked, sizes, tuple(image.adapter for image in job.prompt.images), job.encodes_images, job.preview


def _prompts(job: Job) -> list[Prompt]:
    return [job.prompt] if job.negative is None else [job.prompt, job.negative]


def _key(prompt: Prompt, settings: Settings) -> Hashable:
    """Prompts with the same key have the same branch."""
    return prompt.key, settings.width, settings.height, repr(settings.extras)
