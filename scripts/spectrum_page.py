"""Draws the picture of docs/spectrum.md: the kernel of the digits' network before and after training.

Run as ``python scripts/spectrum_page.py``; takes a minute.
"""

from __future__ import annotations

from pathlib import Path

import ntkscope
from ntkscope.apps.digits import load_digits, make_network, train
from ntkscope.plots import save_figure, spectrum_figure

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "spectrum.png"


def main() -> None:
    digits, network = load_digits(), make_network()
    kernels = {"before training": ntkscope.NTK(network, digits.test_images)}
    train(network, digits)
    kernels["after 5 epochs"] = ntkscope.NTK(network, digits.test_images)
    spectra = {name: kernel.spectrum("lanczos") for name, kernel in kernels.items()}
    save_figure(spectrum_figure(spectra, "The kernel's eigenvalues on 512 digits"), PICTURE)
    for name, spectrum in spectra.items():
        print(name, spectrum, spectrum.entropy(), spectrum.moment(1))


if __name__ == "__main__":
    main()
