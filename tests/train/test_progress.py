"""What the progress bar says of speed."""

from rich.progress import Progress

from mast_ext.train.loop.callbacks import ImagesPerSecondColumn


def test_images_per_second_follow_the_steps():
    now = [0.0]
    column = ImagesPerSecondColumn(64)
    progress = Progress(column, get_time=lambda: now[0])
    progress.add_task("training", total=100, completed=40)
    (task,) = progress.tasks
    assert column.render(task).plain == ""  # of steps before this process nothing is known
    for step in range(41, 46):
        now[0] += 0.02
        progress.update(task.id, completed=step)
    assert column.render(task).plain == "3,200 images/s"
