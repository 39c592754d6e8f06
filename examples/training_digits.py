"""How the kernel of a network changes while it learns digits, epoch by epoch.

Run it with: python examples/training_digits.py   (needs the extra `paper`)
"""

from ntkscope import NTK
from ntkscope.apps.digits import accuracy, load_digits, make_network, train

digits, network = load_digits(), make_network()
start = NTK(network, digits.test_images)

print(f"{'epoch':>5} {'accuracy':>9} {'trace':>10} {'eff. rank':>10} {'alignment with the start':>25}")
for epoch in range(1, 6):
    train(network, digits, epochs=1, seed=epoch)  # Adam starts anew each time
    now = NTK(network, digits.test_images).measure([start])
    print(
        f"{epoch:>5} {accuracy(network, digits):>9.1%} {float(now.trace):>10.4g} "
        f"{float(now.effective_rank):>10.2f} {float(now.alignment[0]):>25.4f}"
    )
