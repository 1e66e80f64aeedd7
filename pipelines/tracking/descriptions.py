"""What MLflow's pages say at the top, in Markdown."""

NOTE = "mlflow.note.content"
"""The tag of a run's or an experiment's description."""

DESCRIPTION = """\
Runs of the AlexNet workflow. Open the newest run named `full_run …` first: its description is a
table of the stages, and the runs nested in it are the stages.

| column | meaning |
| --- | --- |
| `top1_error`, `top5_error` | per cent of the validation images, ten views |
| `…_low`, `…_high` | the ends of the 95 % interval |
| `centre_top1_error`, `centre_top5_error` | per cent, with the centre view alone |
| `val_top1_error`, `val_top5_error` | per cent with the centre view, after each epoch |
| `loss`, `train_loss` | cross-entropy in nats: of an update, and the mean of an epoch |
| `images_per_second` | training images, all workers together |
| `calibration_error` | percentage points between confidence and accuracy, on average |
| `champion` | 1 if the run's model became champion |
| `seconds` | duration of the stage |
| tags `input.…` | digests of what the stage has read |
| tags `code.version`, `git.commit`, `git.dirty` | which code has run |

Curves are in the run `train …`, under *Model metrics*. *Models* ranks the models by their errors.
"""
