"""The training side: from settings to a run directory with weights, probes and a report.

``config``      all settings of a run
``recipes/``    settings from papers
``launch``      processes that train together, and on which device
``signals``     handlers that end with what set them
``networks``    what is trained: backbone, method, hard views
``inputs``      what images ask of the settings: channels, no changes of color without colors
``waiting``     a line on the terminal while something takes long
``loop/``       the training loop: views, step, metrics, when to save, what takes how long
``state/``      what is on disk: run directory, checkpoints, networks restored from them
``evaluation/`` features of labeled images, probes of them, fine-tuning; what needs no labels: what
                features know of augmentations, ranks, views
``report/``     what a run has stored, as tables, figures and one HTML page
``replay``      a step that was not finite once more, to see where that began
``pretrain``    the program: train, train the baseline, measure, report

A step, in the order in which things happen; 2 to 8 are `PretrainModule.optimizer_step` and its
`training_step`:

1. `loop.loader.BatchStream` gives the batch that belongs to the trainer's step.
2. The method learns the step (`Method.at_step`), for schedules.
3. Hard view selection, if it is on, chooses views.
4. Views go through the student's and the teacher's backbone, and the method says the loss.
5. Backward pass. (With ``train.accumulate`` 2 to 5 are repeated for every part of the batch.)
6. The method sees the gradients (`Method.before_update`: prototypes that are frozen at first).
   Weight decay of the step; the gradient's norm; a loss or gradient that is not finite ends the run
   here (on a GPU one step later, see `loop.readback`), before weights are saved.
7. The gradient is clipped, and the optimizer moves the weights.
8. The teacher follows the student. The Gram teacher, if there is one, becomes as the teacher is
   every so many steps.
9. The learning rate moves.
10. A row of metrics, if one is due (`loop.callbacks.Metrics`), some with ranks of the
    representations (`loop.ranks`).
11. A checkpoint, if one is due or a signal has come, which ends the run (`loop.checkpoints`).
12. The progress bar moves.
"""
