"""What a config may say about a weight."""

from __future__ import annotations

import pytest
from toys import toy_classifier, toy_model

from mmkd_plugin import attach
from mmkd_plugin.weights import TARGETS, parse_weight


def test_a_number_stays_what_it_is():
    assert parse_weight(65, 'weight').number == 65.0
    assert parse_weight(0.0, 'weight').number == 0.0
    assert not parse_weight(0, 'weight').is_auto


def test_auto_has_the_target_of_its_kind():
    weight = parse_weight('auto', 'weight')
    assert weight.is_auto
    assert weight.target('feature') == TARGETS['feature']
    assert weight.target('dense') == TARGETS['dense']


def test_a_ratio_is_the_target_of_every_kind():
    weight = parse_weight(dict(ratio=0.25), 'weight')
    assert weight.is_auto and weight.target('feature') == weight.target('roi') == 0.25


@pytest.mark.parametrize(
    ('value', 'words'),
    [
        ('automatic', ["'automatic'", "nearest: 'auto'"]),
        ('3', ["'3'", 'neither a number']),
        (-1, ['-1', '0 or more']),
        (float('inf'), ['inf', 'finite']),
        (float('nan'), ['nan', 'finite']),
        (True, ['True', 'finite number']),
        (None, ['None', 'finite number']),
        ([1.0], ['[1.0]', 'finite number']),
        (dict(), ['ratio']),
        (dict(ratio=0), ['ratio=0', 'above 0', 'switches a term off']),
        (dict(ratio=-0.3), ['ratio=-0.3', 'above 0']),
        (dict(ratio=float('inf')), ['ratio=inf', 'finite']),
        (dict(ratio='auto'), ["ratio='auto'", 'finite number']),
        (dict(ratoi=0.3), ["'ratoi'", "nearest: 'ratio'"]),
        (dict(ratio=0.3, begin=1), ["'begin'"]),
    ],
)
def test_anything_else_is_refused_by_its_key(value, words):
    with pytest.raises(ValueError) as caught:
        parse_weight(value, "terms[0] ('kd'): weight")
    message = str(caught.value)
    assert "terms[0] ('kd'): weight" in message
    for word in words:
        assert word in message


def test_features_of_a_classifier_have_a_target_of_their_own():
    config = dict(loss=dict(type='GDDLoss'), student='backbone', weight='auto')
    term = attach(toy_classifier(0), toy_classifier(1), [config]).terms[0]
    assert term.target == TARGETS['image_feature'] < TARGETS['feature']
    config = dict(config, student='neck.convs.*')
    assert attach(toy_model(0), toy_model(1), [config]).terms[0].target == TARGETS['feature']
