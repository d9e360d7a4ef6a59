"""The input benchmark runs and its numbers add up."""

from __future__ import annotations

import torch

from benchmarks import input_pipeline


def test_parts_are_less_than_the_whole(tmp_path, capsys):
    out = tmp_path / 'results' / 'table.md'
    input_pipeline.main(
        [
            '--networks',
            'resnet8',
            '--images',
            '200',
            '--rounds',
            '1',
            '--steps',
            '1',
            '--out',
            str(out),
        ]
    )
    text = out.read_text()
    assert '| resnet8 | crop + flip |' in text and 'mixup' in text
    assert text.split('\n\n', 2)[2].strip() in capsys.readouterr().out


def test_share():
    assert input_pipeline.Timing(1.0, 2.0, 60.0).share == 5.0


def test_the_stream_does_not_end():
    training = input_pipeline.Training(
        8, input_pipeline.PIPELINES['crop + flip'], torch.device('cpu'), images=20, batch=16
    )
    shapes = [next(training.batches)['inputs'].shape for _ in range(3)]
    assert shapes == [(16, 3, 32, 32)] * 3
