"""Places in records, by example."""

from mlx_imagegen.request.record_paths import fields_to_give, is_same_place, without_places

RECORD = {
    "model": "/home/ann/models/tiny", "quant": "/home/ann/my.toml", "prompt": "/home/ann/models/tiny",
    "lora": [["/home/ann/loras/style.safetensors", 0.5], ["someone/repo@main:a.safetensors", 1.0]],
    "report": {"notes": ["LoRA /home/ann/loras/style.safetensors at 0.5: 3 of 3 modules match"], "seconds": [1.5]},
}  # fmt: skip


def test_names_stay_and_places_go() -> None:
    shown = without_places(RECORD)
    assert (shown["model"], shown["quant"], shown["prompt"]) == ("…/tiny", "…/my.toml", RECORD["prompt"])
    assert shown["lora"] == [["…/style.safetensors", 0.5], ["someone/repo@main:a.safetensors", 1.0]]
    assert shown["report"] == {"notes": ["LoRA …/style.safetensors at 0.5: 3 of 3 modules match"], "seconds": [1.5]}
    assert fields_to_give(RECORD) == []
    assert fields_to_give(shown) == [("model", "tiny"), ("quant", "my.toml"), ("lora", "style.safetensors")]


def test_records_without_places_stay_as_they_are() -> None:
    for record in ({"model": "flux-dev", "seed": 1}, {"model": 5, "lora": 7, "quant": None}, {"lora": [[], 3, [None]]}):
        assert without_places(record) == record and fields_to_give(record) == []


def test_the_same_place() -> None:
    assert is_same_place("/a/tiny", "/a/tiny") and is_same_place("…/tiny", "/b/tiny")
    assert not is_same_place("/a/tiny", "/b/tiny") and not is_same_place("…/tiny", "/b/other")
    assert not is_same_place(None, "/b/other")
