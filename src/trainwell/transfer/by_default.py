"""Which pretrained model there is without being asked for: one of the hub for photographs, ours for small images."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from trainwell.errors import InputError
from trainwell.images import Images
from trainwell.transfer import embedded
from trainwell.transfer.backbones import Backbone

PHOTOGRAPHS = "hub:timm/resnet18.a1_in1k"
_ENOUGH = 20_000  # images, from which on a network learns for itself what another could give it
_SMALL, _LARGE = 16, 64  # pixels of the shorter side: below, there is less to see than any network was trained on
_SEEN = 0.1  # of the images; false alarms are below 0.01


def by_default(
    images: Images,
    rows: npt.NDArray[np.int64],
    load: Callable[[str], Backbone],
    say: Callable[[str], object],
) -> Backbone | None:
    """Returns the pretrained model that suits some images; `None` where they had better be learnt from scratch.

    Args:
        images: of the data.
        rows: those to train on.
        load: returns the model of a source, see `load_backbone`.
        say: told why, in a line.
    """
    side = int(np.median(images.shapes[rows, :2].min(1)))
    if len(rows) >= _ENOUGH:
        say(
            f"from scratch: {len(rows):,} images are enough to learn from (--pretrained … begins with a pretrained one)"
        )
        return None
    if side < _SMALL:
        say(f"from scratch: in images of {side} pixels no pretrained network finds what it knows")
        return None
    if side < _LARGE:
        share = embedded.seen_before(images, rows)
        if share > _SEEN:
            say(
                f"from scratch: the embedded network was trained on images like {share:.0%} of these, so that figures "
                "on them would flatter it (--pretrained embedded takes it all the same)"
            )
            return None
        say("small images, and few: the embedded network is trained further (--pretrained none begins from scratch)")
        return load(embedded.NAME)
    say("photographs, and few: a network that has seen others is trained further (--pretrained none for from scratch)")
    try:
        return load(PHOTOGRAPHS)
    except InputError as error:
        say(
            f"from scratch, as {PHOTOGRAPHS} cannot be had: {error} (--pretrained FILE takes one from elsewhere, "
            "--pretrained embedded the small one that is here)"
        )
        return None
