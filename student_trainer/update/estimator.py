"""What the gradient of a run is an estimate of, where that is not the loss's own divergence."""

from __future__ import annotations

from student_trainer.settings.train import TrainConfig

# The least staleness at which the weights were seen to cost something.
MEASURED_STALENESS = 4


def estimator_notes(config: TrainConfig) -> list[str]:
    """What these settings leave out of the gradient, a sentence each; often none.

    A loss on a support is exact at every row, however its tokens were drawn. What is learnt
    at drawn tokens alone is learnt from ids of the nucleus alone (docs/losses.md).
    """
    return [*_of_scoring(config), *_of_weights(config), *_of_nuclei(config), *_of_rewards(config)]


def _of_scoring(config: TrainConfig) -> list[str]:
    share = config.scoring.scored_share
    if share is None or share == 1:
        return []
    return [
        f"scoring.scored_share = {share} leaves the end of every response unscored: nothing is "
        "learnt of when to stop (scoring.max_scored_tokens alone scores short responses whole)"
    ]


def _of_nuclei(config: TrainConfig) -> list[str]:
    if not config.learns_from_nuclei:
        return []
    what = config.loss.kind if config.loss.at_sampled_token else "loss.masked_chunks"
    outside = round(1 - config.rollout.top_p, 9)
    note = (
        f"{what} learns at drawn tokens alone, and rollout.top_p = {config.rollout.top_p} never "
        "draws the student's least likely ones: the gradient is that of the divergence on the "
        f"nucleus, in which up to {outside:g} of the probability at each position has no part "
    )
    if not config.loss.nucleus_weights:
        note += (
            "and, without loss.nucleus_weights, a position counts the more the less probable its "
            "nucleus is "
        )
    return [
        note + "(docs/losses.md). rollout.top_p = 1 gives that of the whole divergence; a loss on "
        "a support, such as lsm, does not depend on top_p",
    ]


def _of_weights(config: TrainConfig) -> list[str]:
    """What the weights of stale batches have cost where that was measured (``make
    bench-staleness``); often nothing."""
    pipeline = config.pipeline
    weighs = pipeline.importance_weights and pipeline.importance_cap is not None
    if pipeline.staleness < MEASURED_STALENESS or config.loss.own_ratio or not weighs:
        return []
    return [
        f"pipeline.staleness = {pipeline.staleness}: at {MEASURED_STALENESS} on a small model, "
        "students of lsm whose stale tokens weighed π/π_old ended farther from the teacher than "
        "those whose tokens all weighed 1 (docs/training.md). pipeline.importance_weights = false "
        "leaves the weights out"
    ]


def _of_rewards(config: TrainConfig) -> list[str]:
    if not config.reward.learns or config.rollout.top_p == 1:
        return []
    return [
        f"reward: rollout.top_p = {config.rollout.top_p} draws from a part of the student's "
        "distribution, and the policy gradient is that of the whole one: it is no exact gradient "
        "of the mean score (docs/rewards.md). rollout.top_p = 1 makes it one"
    ]
