"""What the lines of metrics.jsonl and summary.json of a run hold.

``tests/trainer/test_metric_names.py`` compares these tables with what runs write, so a new
key needs a row here.
"""

from __future__ import annotations

from dataclasses import dataclass

from student_trainer.tasks.judgement import FAILURES
from student_trainer.teacher.mask_reasons import EXPLAINED, metric_of
from tools.reference.markdown import code, section, table


@dataclass(frozen=True)
class Key:
    """Attributes: unit: of its value. where: the runs or steps that have it; empty, all."""

    name: str
    unit: str
    meaning: str
    where: str = ""


SUPPORT = "a loss on a support, or a policy gradient with `loss.top_k` above 0"
WHOLE = "`report.metric_rows` above 0"
ACROSS = "the teacher has another tokenizer"
POLICY = '`loss.kind = "sampled_token"` or `"fixed_advantage"`'
COARSE = f'{ACROSS}, `loss.coarse = "bucket"`, and there are such positions'
MIXED = "`mixing`, and the step has answers of the data"
STALE = "a stale batch, `pipeline.importance_cap` set, a loss on a support"

METRICS = (
    Key("step", "count", "Number of the step, from 1."),
    Key("time", "date, UTC", "When the step ended."),
    Key("loss", "nats", "Mean loss of the step's updates; none when all are empty."),
    Key(
        "student_loss",
        "nats",
        "Mean loss of rows of the student's responses, before any weight.",
        MIXED,
    ),
    Key("data_loss", "nats", "Mean loss of rows of answers of the data, before any weight.", MIXED),
    Key(
        "data_nll",
        "nats",
        "Mean negative log-likelihood of answers' tokens.",
        f"{MIXED}, `mixing.nll_weight` above 0",
    ),
    Key("data_responses", "count", "Answers of the data in the step.", MIXED),
    Key("data_tokens", "tokens", "Those of `tokens` that are of answers.", MIXED),
    Key("data_tokens_used", "tokens", "Those of `tokens_used` that are of answers.", MIXED),
    Key("data_response_length_mean", "tokens", "Mean length of an answer with its end.", MIXED),
    Key("tokens", "tokens", "Tokens of all responses of the batch, as far as they are scored."),
    Key(
        "teacher_tokens_saved",
        "tokens",
        "Tokens of the responses that the teacher was not asked for.",
        "`scoring`",
    ),
    Key("tokens_used", "tokens", "Tokens whose rows are in the loss."),
    Key("masked_tokens", "tokens", "Tokens that `loss.mask` leaves out."),
    Key(
        "unusable_tokens",
        "tokens",
        "Further tokens for which a teacher with another tokenizer gives no usable row.",
    ),
    Key("chunk_tokens", "tokens", "Those of them that learn from their chunk instead."),
    Key(
        "coarse_tokens",
        "tokens",
        "Those of `tokens_used` that are compared on their ids and the rest "
        "(class COARSE, or a single id).",
    ),
    Key(
        "refused_rollouts",
        "count",
        "Responses that the teacher refuses by themselves, such as one that is too long in its "
        "tokens; they are left out.",
    ),
    Key("empty_updates", "count", "Updates without a usable row, which change nothing."),
    Key("dropped_non_finite", "tokens", "Tokens left out because their row is not finite."),
    Key("dropped_small_support", "tokens", "Tokens left out for fewer than two valid ids."),
    Key("response_length_mean", "tokens", "Mean length of a response of the student."),
    Key("response_length_p10", "tokens", "A tenth of the student's responses is no longer."),
    Key("response_length_p50", "tokens", "Median length of a response of the student."),
    Key("response_length_p90", "tokens", "Nine tenths of the student's responses are no longer."),
    Key("response_length_max", "tokens", "Length of the student's longest response."),
    Key(
        "responses_by_length",
        "count, a list",
        "Responses of the student of length 1, 2 to 3, 4 to 7 and so on.",
    ),
    Key("truncated_share", "share", "Those that were cut at the length limit."),
    Key("loop_tokens_share", "share", "Tokens of the student's responses that lie in a loop."),
    Key("looping_share", "share", "Responses of the student that have a loop."),
    Key("longest_loop", "tokens", "Length of the longest loop; 0 without one."),
    Key("grad_norm", "norm", "Largest 2-norm of an update's gradient, before clipping."),
    Key("clipped", "true or false", "Whether a gradient of the step was clipped."),
    Key("clipped_share", "share", "Updates of the step whose gradient was clipped."),
    Key("lr", "rate", "Learning rate of the step's last update."),
    Key("teacher_support_mass", "probability", "The teacher's mass on the support, mean.", SUPPORT),
    Key("sampled_in_support", "share", "Rows whose support holds the sampled token.", SUPPORT),
    Key(
        "top1_agreement_on_support",
        "share",
        "Rows where both sides prefer the same id of the support.",
        "a loss on a support",
    ),
    Key("student_support_mass", "probability", "The student's mass on the support, mean.", WHOLE),
    Key(
        "support_overlap",
        "share",
        "Ids of a support that are among as many most likely ids of the student, mean.",
        WHOLE,
    ),
    Key("student_entropy", "nats", "Entropy of the student's rows, mean.", WHOLE),
    Key(
        "rollout_log_prob_gap",
        "nats",
        "How far the sampled token's log-probability has moved since the rollout, absolute mean.",
        f"{WHOLE}, and `loss.temperature` equal to `rollout.temperature`",
    ),
    Key("log_ratio_mean", "nats", "Mean of log q - log π_old at the sampled token."),
    Key("signal_tokens", "tokens", "Tokens whose log q - log π_old is known."),
    Key(
        "signal_unknown_tokens",
        "tokens",
        "Others of `tokens_used` that the student drew: coarse, by their chunk, or without a value "
        "of the teacher.",
    ),
    Key("positive_share", "share", "`signal_tokens` with log q - log π_old above 0."),
    Key("negative_share", "share", "`signal_tokens` with log q - log π_old below 0."),
    Key(
        "positive_signal_share",
        "share",
        "What the positive ones have of the sum of all |log q - log π_old|.",
    ),
    Key(
        "positive_effective_share",
        "share",
        "Effective number of positive tokens, (Σa)²/Σa², over their number: near 0 where few have "
        "nearly all of the signal.",
    ),
    Key("negative_effective_share", "share", "The same of the negative ones."),
    Key(
        "log_ratio_by_position",
        "nats, a list",
        "Mean of log q - log π_old at places 0, 1, 2 to 3, 4 to 7 and so on of the responses; "
        "`null` where there is none.",
    ),
    Key(
        "signal_tokens_by_position",
        "count, a list",
        "`signal_tokens` at these places.",
    ),
    Key(
        "log_ratio_by_probability",
        "nats, a list",
        "Mean of log q - log π_old by the teacher's probability of the token: above 1/2, above "
        "1/4 and so on, the last of at most 2⁻¹⁶.",
    ),
    Key(
        "tokens_by_probabilities",
        "count, lists",
        "`signal_tokens` in the same bins: a list for each of the teacher's, in it the student's.",
    ),
    Key("advantage", "nats", "Mean advantage of a token.", POLICY),
    Key("ratio", "ratio", "Mean of π/π_old at the sampled token.", POLICY),
    Key("ratio_clipped", "share", "Tokens whose ratio is outside the clip range.", POLICY),
    Key(
        "entropy_switched",
        "share",
        "Rows to whose reverse KL forward KL is added; coarse rows aside.",
        '`loss.kind = "entropy_switch"`',
    ),
    Key("row_clamped", "share", "Rows whose loss `loss.row_clamp` bounds.", "`loss.row_clamp` set"),
    Key("importance_log_ratio", "nats", "Mean of log π - log π_old at the sampled token.", STALE),
    Key("importance_weight", "ratio", "Mean importance weight of a token.", STALE),
    Key("importance_truncated", "share", "Tokens whose weight the cap bounds.", STALE),
    Key("row_weight", "ratio", "Mean weight of a row, by `weights` alone.", "`weights`"),
    Key("row_weight_zero_share", "share", "Rows that `weights` leaves out.", "`weights`"),
    Key("chunk_advantage", "nats", "Mean advantage of `chunk_tokens`.", "`loss.masked_chunks`"),
    Key("realign_failed_share", "share", "Responses that could not be realigned.", ACROSS),
    Key("realign_masked_share", "share", "Positions of class MASKED.", ACROSS),
    Key("realign_coarse_rest", "probability", "Mass beside a coarse row's ids, mean.", COARSE),
    Key("coarse_loss", "nats", "Mean loss of `coarse_tokens`.", COARSE),
    Key(
        "coarse_student_rest",
        "probability",
        "The student's mass beside a coarse row's ids, mean.",
        f"{COARSE}; {WHOLE}",
    ),
    *(
        Key(
            metric_of(name),
            "share",
            f"Positions masked or coarse: {text}.",
            ACROSS,
        )
        for name, text in EXPLAINED.items()
    ),
    Key("realign_exact_share", "share", "Positions of class EXACT.", ACROSS),
    Key("realign_remap_share", "share", "Positions of class REMAP.", ACROSS),
    Key("realign_aligned_share", "share", "Positions of class ALIGNED.", ACROSS),
    Key("realign_mid_share", "share", "Positions of class MID.", ACROSS),
    Key("realign_special_share", "share", "Positions of class SPECIAL.", ACROSS),
    Key("realign_coarse_share", "share", "Positions of class COARSE.", ACROSS),
    Key("realign_coverage", "probability", "Mass that a realigned support holds, mean.", ACROSS),
    Key("realign_open_mass", "probability", "Mass whose token is not settled, mean.", ACROSS),
    Key("realign_lost_mass", "probability", "Mass that no token can express, mean.", ACROSS),
    Key("rollout_seconds", "seconds", "Time in which responses were written."),
    Key("teacher_wait_seconds", "seconds", "Time in which the trainer waited for scores."),
    Key("update_seconds", "seconds", "The rest of the step: losses, gradients, the update."),
    Key("step_seconds", "seconds", "The whole step."),
    Key("rollout_share", "share", "`rollout_seconds` of `step_seconds`."),
    Key("teacher_wait_share", "share", "`teacher_wait_seconds` of `step_seconds`."),
    Key("update_share", "share", "`update_seconds` of `step_seconds`."),
    Key("staleness", "steps", "Steps since the weights that wrote the batch."),
    Key("tokens_per_second", "tokens/s", "`tokens` over `step_seconds`."),
    Key(
        "loss_by_position",
        "nats, a list",
        "Mean loss, before any weight, of the tokens at places 0, 1, 2 to 3, 4 to 7 and so on of "
        "their responses; `null` where there is none.",
    ),
    Key("teacher_identity", "digest", "Identity of the teacher, the same in every step."),
)

JUDGED = "a task that judges responses, `verification.training`"
# Of each task NAME/TASK; those of failures are of all tasks together.
TASK_METRICS = (
    Key("task_responses", "count", "Responses of the step to prompts of the task."),
    Key("task_length_mean", "tokens", "Their mean length."),
    Key("task_truncated_share", "share", "Those that were cut at the length limit."),
    Key(
        "task_loss",
        "nats",
        "Mean loss of their rows that have one by themselves, before any weight.",
    ),
    Key(
        "task_right_share",
        "share",
        "Those that are right, of all whose judging began; one that fails is not right.",
        JUDGED,
    ),
    Key("task_score", "score", "Mean score of those that have one.", JUDGED),
    Key(
        "task_value_NAME",
        "the task's own",
        "Mean of a further value that the verifier finds.",
        JUDGED,
    ),
    Key(
        "failed_verifications",
        "count",
        "Responses of all tasks that could not be judged.",
        JUDGED,
    ),
    *(
        Key(f"failed_verifications_{kind}", "count", f"Of these, how many {text}.", JUDGED)
        for kind, text in FAILURES.items()
    ),
    Key(
        "verification_wait_seconds",
        "seconds",
        "Time in which the trainer waited for judgements, before the update with `reward` and "
        "else after it; a part of `update_seconds`.",
        JUDGED,
    ),
)

SCORED = "`reward.weight` or `reward.last_weight` above 0"
# Of all tasks together.
REWARD_METRICS = (
    Key("reward_weight", "ratio", "Weight of the policy gradient of the scores in the step."),
    Key("reward_mean", "score", "Mean score of the responses that have one."),
    Key(
        "reward_advantage_deviation",
        "score",
        "Standard deviation of the advantages, of all responses to prompts of tasks that judge; "
        "in deviations of a group with `reward.normalise`.",
    ),
    Key(
        "reward_groups_without_signal_share",
        "share",
        "Groups in which all scores are equal, or fewer than two responses have one.",
    ),
    Key(
        "reward_unscored_responses",
        "count",
        "Responses of tasks that judge without a score.",
    ),
    Key(
        "reward_loss",
        "score",
        "Mean of the policy gradient's term at its weight, over all rows in the loss.",
    ),
    Key(
        "reward_ratio_clipped",
        "share",
        "Rows with an advantage whose π/π_old is outside of the clip range.",
    ),
)

SUMMARY = (
    Key("run", "text", "Name of the run."),
    Key("teacher", "text", "Model of the teacher; its name where nothing was evaluated."),
    Key("teacher_identity", "digest", "Identity of the teacher."),
    Key("student", "text", "Model that the run began with."),
    Key("loss", "text", "`loss.kind`."),
    Key("top_k", "ids", "`loss.top_k`."),
    Key("steps", "count", "Steps made."),
    Key("tokens", "tokens", "Tokens of all responses of all steps, as far as they are scored."),
    Key(
        "teacher_tokens_saved",
        "tokens",
        "Tokens of responses that the teacher was not asked for; `null` where it is asked for all.",
    ),
    Key("data_responses", "count", "Answers of the data in all steps; `null` without any."),
    Key("data_tokens", "tokens", "Those of `tokens` that are of answers; `null` without any."),
    Key("seconds", "seconds", "Time of all steps and both evaluations."),
    Key("held_out_prompts", "count", "Held-out prompts that were evaluated."),
    Key("frozen_rows", "positions", "Frozen positions that were measured."),
    Key(
        "mask_reasons",
        "share",
        "Positions of all steps that are masked or coarse, as an object by reason; `null` with "
        "one tokenizer.",
    ),
)

SAME = "the teacher has the student's tokenizer"
# Each twice, with _before and _after.
MEASURED = (
    Key("reverse_kl", "nats", "Reverse KL(student‖teacher) at frozen positions, mean.", SAME),
    Key("forward_kl", "nats", "Forward KL(teacher‖student) at frozen positions, mean.", SAME),
    Key("agreement", "share", "Frozen positions where both sides prefer the same id.", SAME),
    Key("fresh_reverse_kl", "nats", "Reverse KL at positions of fresh rollouts, mean.", SAME),
    Key("fresh_forward_kl", "nats", "Forward KL at positions of fresh rollouts, mean.", SAME),
    Key("fresh_agreement", "share", "The same agreement at positions of fresh rollouts.", SAME),
    Key("fresh_rows", "positions", "Positions of fresh rollouts that were measured.", SAME),
    Key("rollout_length", "tokens", "Mean length of a fresh response."),
    Key("truncated_share", "share", "Fresh responses that were cut at the length limit."),
)
ON_SUPPORT = (
    Key("reverse_kl", "nats", "reverse KL, both sides renormalised on the certified ids"),
    Key("forward_kl", "nats", "forward KL, both sides renormalised on the certified ids"),
    Key("agreement", "share", "how often both sides' most likely id, over all ids, is the same"),
    Key("student_mass", "probability", "the student's mass on the certified ids, mean"),
    Key("coverage", "probability", "the teacher's mass on the certified ids, mean"),
    Key("open_mass", "probability", "the teacher's mass that is not settled, mean"),
    Key("masked_share", "share", "those without a usable row, left out of all means"),
    Key("coarse_share", "share", "those of class COARSE, left out of the means above"),
    Key("coarse_reverse_kl", "nats", "reverse KL of coarse ones, on their ids and the rest"),
    Key("coarse_forward_kl", "nats", "forward KL of coarse ones, on their ids and the rest"),
    Key("coarse_student_rest", "probability", "the student's mass of this rest, mean"),
    Key("coarse_teacher_rest", "probability", "the teacher's mass of this rest, mean"),
    Key("rows", "positions", "how many were measured"),
)
PLACES = {"support": "Frozen positions", "fresh_support": "Positions of fresh rollouts"}
LIKELIHOODS = (
    Key(
        "student_bits_per_byte",
        "bits per byte",
        "Code length of the text of fresh rollouts under the student, by its own tokens.",
    ),
    Key(
        "teacher_bits_per_byte",
        "bits per byte",
        "Code length of the same text under the teacher, by whole chunks.",
    ),
)

# Of each task that judges NAME/TASK, in evaluations; in the summary NAME_before/TASK and
# NAME_after/TASK.
TASK_MEASURED = (
    Key(
        "pass_at_K",
        "share",
        "Prompts of which at least one of K responses is right, estimated without bias from "
        "`evaluation.task_responses`; `pass_at_1` is the share of right responses (avg@n).",
    ),
    Key("task_score", "score", "Mean score of the responses that have one."),
    Key("task_value_NAME", "the task's own", "Mean of a further value that the verifier finds."),
    Key("task_rollout_length", "tokens", "Mean length of a response."),
    Key("task_truncated_share", "share", "Responses that were cut at the length limit."),
    Key("task_failed_verifications", "count", "Responses that could not be judged."),
)


def measured_across() -> tuple[Key, ...]:
    """What is measured where the teacher has another tokenizer, without the suffixes."""
    on_support = (
        Key(f"{prefix}_{key.name}", key.unit, f"{place}: {key.meaning}.")
        for prefix, place in PLACES.items()
        for key in ON_SUPPORT
    )
    return (*on_support, *LIKELIHOODS)


def sections() -> list[str]:
    """The tables as Markdown."""
    return [
        section(
            "metrics.jsonl",
            "One JSON object per step. A key that is not in every step has `null` or is missing "
            "elsewhere. Means are over the rows in the loss, those of the whole vocabulary over "
            "`report.metric_rows` of them; realigned ones are over positions that are neither "
            "masked nor coarse, and those of supports over rows that are not coarse. In a step "
            "with answers of the data all means but `loss` are of the student's own responses, and "
            "`data_NAME` is the mean NAME of the answers. "
            "Signals, loops and lengths have their definitions on a page of their own "
            "(docs/diagnostics.md). "
            "π is the student, π_old the student that wrote the rollout, q the teacher. "
            "With several teachers everything that is said of rows or responses is also said of "
            "those that one of them scored, as `KEY/NAME`, and `loss/NAME` is before the teacher's "
            "weight; so are its `teacher_wait_seconds` and, in place of the key itself, its "
            "`teacher_identity`.",
            _table(METRICS),
        ),
        section(
            "metrics.jsonl, tasks",
            "Of each task as `KEY/TASK`, but for failures and the wait, which are of all of them. "
            "A response that could not be judged is not right (docs/tasks.md).",
            _table(TASK_METRICS),
        ),
        section(
            "metrics.jsonl, rewards",
            f"Where {SCORED} (docs/rewards.md).",
            _table(REWARD_METRICS),
        ),
        section(
            "summary.json",
            "One JSON object per run. `null` stands for what was not measured. With several "
            "teachers there are `teacher`, `teacher_identity`, `held_out_prompts`, `frozen_rows` "
            "and everything that is measured before and after as `KEY/NAME`; divergences of all "
            "of them together are `null`: they have no common mean.",
            _table(SUMMARY),
        ),
        section(
            "summary.json, before and after",
            "Each of these twice, as `NAME_before` and `NAME_after`, at temperature 1.",
            _table(MEASURED),
        ),
        section(
            "summary.json, across tokenizers",
            "Each of these twice too, and only where the teacher has another tokenizer "
            "(docs/training.md).",
            _table(measured_across()),
        ),
        section(
            "summary.json, tasks",
            "Each of these twice for each task that judges responses, as `NAME_before/TASK` and "
            "`NAME_after/TASK`, with `task_prompts/TASK`, the number of its prompts. During a run "
            "they are `held_out/NAME/TASK`.",
            _table(TASK_MEASURED),
        ),
    ]


def _table(keys: tuple[Key, ...]) -> str:
    where = any(key.where for key in keys)
    columns = ("key", "unit", "meaning", *(("where",) if where else ()))
    rows = ((code(k.name), k.unit, k.meaning, *((k.where,) if where else ())) for k in keys)
    return table(columns, rows)
