"""The rules of 2012, each with the test that checks it.

Each of these tests compares the code with another computation, from the plain formula.

Rules for which the paper and the source differ:

- cross-map normalization, alpha on the plain sum or alpha/n
  test_lrn.py::test_values
- torch and the source divide alpha by n
  test_lrn.py::test_torch_divides_alpha_by_the_window_size_as_the_source_does
- norm 1 before or after ReLU, and pool 1
  test_published_networks.py::test_logits_and_gradients_equal_those_of_the_description
- within-map normalization of source145, its formula
  test_lrn.py::test_values
- within-map normalization is between norm 2 and pool 2
  test_published_networks.py::test_logits_and_gradients_equal_those_of_the_description
- standard deviation of the initial weights by layer
  test_published_networks.py::test_widths_and_initial_values_of_the_description
  test_towers.py::test_initial_values
- colour noise by eigenvalue or its root
  test_augment.py::test_covariance_of_the_colour_noise
  test_augment.py::test_axes_of_the_source_are_the_ones_of_its_authors
- one colour shift for each image
  test_augment.py::test_only_the_source_uses_one_crop_for_32_images
- division by 1.1, only with noise
  test_loop.py::test_the_input_of_the_network
- 32x32 or 33x33 offsets, with flips
  test_augment.py::test_crops_and_flips_are_uniform
- 32 consecutive images have the same crop and flip
  test_augment.py::test_only_the_source_uses_one_crop_for_32_images
- order of the images: the source's never changes, the paper does not say
  test_loader.py::test_epochs_have_the_same_batches_only_without_reshuffling
  test_recipe_settings.py::test_the_source_shuffles_once_and_the_setting_wins
- drops at epochs 25, 51, 79; conv1 at 67 and 72; counted from 1
  test_optimizer.py::test_schedule_of_the_source
- the rate drops when the error stalls
  test_optimizer.py::test_the_rate_of_the_paper_drops_when_the_error_stalls

Rules of both:

- towers, groups
  test_published_networks.py::test_logits_and_gradients_equal_those_of_the_description
- widths
  test_published_networks.py::test_widths_and_initial_values_of_the_description
- 60,965,224 parameters
  test_towers.py::test_number_of_parameters
- the towers exchange activations in conv3, fc6, fc7, fc8
  test_placement.py::test_the_towers_exchange_activations_only_in_four_layers
- conv1 pads on the right and below
  test_towers.py::test_conv1_pads_on_the_right_and_below
- padding after the mean is subtracted
  test_classifier.py::test_probabilities_equal_a_float64_reference
- pooling 3x3 with stride 2: 55, 27, 13, 6
  test_towers.py::test_shapes_of_the_layers
- the central mean is subtracted from every crop
  test_augment.py::test_the_central_mean_is_subtracted_unflipped_from_every_crop
- biases start at 1 or 0
  test_published_networks.py::test_widths_and_initial_values_of_the_description
- biases' rate, no decay of biases
  test_optimizer.py::test_every_layer_has_its_rates
- biases of source145 keep their rate, the paper's drop
  test_optimizer.py::test_biases_of_the_source_keep_their_rate_except_in_conv1
  test_optimizer.py::test_biases_of_the_paper_drop_with_the_weights
- the update before and after a drop
  test_optimizer.py::test_update_before_and_after_drops
- torch's update rule differs
  test_optimizer.py::test_torch_differs_after_a_drop_and_not_before
- frozen weights are not moved by momentum
  test_optimizer.py::test_momentum_does_not_move_frozen_weights
- dropout: no scale in training, half in evaluation
  test_towers.py::test_dropout_scales_in_evaluation_not_in_training
- dropout in fc6 and fc7
  test_towers.py::test_dropout_masks_of_fc6_and_fc7_differ_between_towers
- ten views: offsets and flips
  test_augment.py::test_ten_views
- ten views: mean of the softmax
  test_fidelity.py::test_ten_views_average_the_softmax
- shorter side to 256, then the central square
  test_decode.py::test_any_shape_is_resized_and_cropped_as_by_torchvision
- no EXIF rotation
  test_decode.py::test_exif_rotation_is_ignored
- rates, momentum, weight decay, batch size, epochs
  test_fidelity.py::test_numbers
"""

import re
from pathlib import Path

import numpy as np
import torch
from factories import narrow_network

from alexnet.diagnostics.equivalence import he_init
from alexnet.metrics import average
from alexnet.model.classifier import CropClassifier, view_probabilities
from alexnet.recipes import PAPER, SOURCE145
from alexnet.schedules import PlateauSchedule
from alexnet.training.augment import mean_crop, ten_crop

RULES = re.findall(r"(test_\w+\.py)::(test_\w+)", __doc__)


def test_every_rule_names_a_test_that_exists() -> None:
    assert len(RULES) >= 30
    for module, name in RULES:
        (path,) = Path(__file__).parents[2].rglob(module)
        assert f"\ndef {name}(" in path.read_text(), (module, name)


def test_ten_views_average_the_softmax() -> None:
    random = np.random.default_rng(9)
    images = random.integers(0, 256, (1, 8, 8, 3), np.uint8).repeat(32, axis=1).repeat(32, axis=2)
    mean_image = random.uniform(90, 160, (256, 256, 3)).astype(np.float32)
    network = narrow_network(SOURCE145)
    he_init(network)
    with torch.no_grad():
        network.fc8.weight.mul_(0.2)  # Without this, one class would have probability 1.
    classifier = CropClassifier(network, mean_crop(mean_image))
    probabilities = average(
        list(view_probabilities({"": classifier}, ten_crop(torch.from_numpy(images))))
    )

    corners = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]
    views = [images[:, top : top + 224, left : left + 224] for top, left in corners]
    views += [view[:, :, ::-1] for view in views]
    network.double()
    logits = []
    for view in views:
        crops = (view - mean_image[16:240, 16:240].astype(np.float64)).transpose(0, 3, 1, 2)
        logits.append(network(torch.from_numpy(crops.copy())).detach().numpy())
    exponentials = np.exp(np.stack(logits))
    expected = (exponentials / exponentials.sum(axis=2, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    # Many reimplementations use the softmax of the mean, which is different.
    of_mean = np.exp(np.stack(logits).mean(axis=0))
    assert np.abs(of_mean / of_mean.sum(axis=1, keepdims=True) - expected).max() > 1e-3


def test_numbers() -> None:
    for recipe in (PAPER, SOURCE145):
        assert (recipe.learning_rate, recipe.momentum, recipe.weight_decay) == (0.01, 0.9, 0.0005)
        assert (recipe.batch_size, recipe.dropout, recipe.colour_noise_std) == (128, 0.5, 0.1)
    assert (PAPER.epochs, SOURCE145.epochs) == (90, 91)
    assert isinstance(PAPER.schedule, PlateauSchedule)
    assert (PAPER.schedule.factor, PAPER.schedule.drops) == (0.1, 3)
