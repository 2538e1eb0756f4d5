"""Why a check that is made for labelled images says nothing of episodes or of detectors. No torch.

The checks that carry over are marked in `table`; here is a sentence for each of the others.
"""

from __future__ import annotations

NOT_FOR: dict[tuple[str, int], str] = {
    ("fewshot", 3): "The budget of an audit of episodes goes into more episodes, not into more"
    " starts on the queries of one.",
    ("fewshot", 4): "An episode has too few queries on which the attack fails for a share of them"
    " that are unfinished; check 2 looks at the loss itself.",
    ("fewshot", 6): "What a large eps leaves depends on the episode's classes: a few novel ones,"
    " answered by a head of their own, have no common chance level; check 7 asks the same at"
    " eps = 1.",
    ("fewshot", 8): "Square's queries would be spent anew on every episode's own classifier; check"
    " 10 tries points without gradients.",
    ("fewshot", 9): "A surrogate would have to be fitted to every episode's support set, and its"
    " head, not its network, would decide what transfers.",
    ("fewshot", 14): "Heads answer by distances, margins or linear maps, each on a scale of its"
    " own, which are no probabilities of a trained classifier.",
    ("fewshot", 15): "A few-shot head is fitted to its support set at test time by design, before"
    " a query is asked: gradients in it are no defence.",
    ("fewshot", 18): "The loss of a head that was fitted to a few images has no usual size to"
    " compare its changes with.",
    ("fewshot", 19): "The threshold on the angle between gradients comes from trained classifiers;"
    " none is known for heads that are fitted to a few images.",
    ("fewshot", 20): "The check compares with a baseline of the same classes, and an episode's"
    " classes have none.",
    ("fewshot", 21): "Catastrophic overfitting is of the classifier that is trained against one"
    " step; episodes are answered by another head, on other classes, and check 1 shows what is"
    " left of it there.",
    ("fewshot", 22): "Labels leak from training into the classes that were trained on; those of a"
    " test episode were never seen.",
    ("fewshot", 23): "The usual order of attacks is known of classifiers with common classes and"
    " of AutoAttack, which is not run on episodes of few classes.",
    ("fewshot", 24): "RobustBench has no few-shot results to compare with.",
    ("fewshot", 26): "Heads of episodes replace the network's own classifier: no auxiliary head"
    " has a say in the answer.",
    ("fewshot", 29): "The saturated copy tests the attack's code, which is the same for an"
    " episode's classifier as for any other.",
    ("fewshot", 30): "Binary read-outs replace a trained classifier's last layer; an episode's head"
    " is such a read-out itself.",
    ("fewshot", 32): "Shifted queries would ask how the head generalises, which few-shot benchmarks"
    " measure with tasks of their own.",
    ("detection", 3): "Every start costs a whole attack on images that take seconds a pass; the"
    " budget goes into more images.",
    ("detection", 4): "No attack on a detector simply fails: there is no verdict that it could"
    " have changed by going on; check 2 looks at the loss itself.",
    ("detection", 6): "Mean average precision has no chance level that a large eps must reach;"
    " check 5 asks whether the loss grows with eps.",
    ("detection", 8): "Square counts wrong answers, and a detector's boxes are neither right nor"
    " wrong by themselves; check 10 tries points without gradients.",
    ("detection", 9): "An image that falls to a surrogate is one whose answer becomes wrong;"
    " a detector's image has no such verdict.",
    ("detection", 14): "A detector's answer is boxes: it has no logits for which probabilities"
    " could have been mistaken.",
    ("detection", 15): "A detector's layers come from a registry by name, and gradients inside its"
    " forward pass are not looked for.",
    ("detection", 18): "A detector's loss divides by the matched boxes of an image, so its"
    " relative changes have no threshold that is common to images.",
    ("detection", 19): "The threshold on the angle between gradients comes from classifiers; none"
    " is known for a loss that adds classes and boxes.",
    ("detection", 20): "Matching and hard-negative mining make a detector's loss piecewise: its"
    " linearisation error says little of the attack's surface.",
    ("detection", 21): "The rule is about accuracy, which a detector does not have; checks 1 and 5"
    " show an FGSM that beats PGD in the loss.",
    ("detection", 22): "FGSM with predicted labels has no counterpart: a detector predicts another"
    " number of boxes than there are objects.",
    ("detection", 23): "A margin loss and AutoAttack are defined on logits of one class for an"
    " image, which a detector has not.",
    ("detection", 24): "RobustBench has no detectors to compare with.",
    ("detection", 26): "Auxiliary heads that gate the features of classes belong to classifiers;"
    " a detector here has none.",
    ("detection", 29): "The saturated copy multiplies an image's logits; a detector's class scores"
    " and box offsets share no such factor.",
    ("detection", 30): "A binary read-out answers for a whole image, and a detector answers for"
    " every place in it.",
    ("detection", 32): "Boxes would have to be moved with the image, and the mean average"
    " precision measured anew under every shift.",
}
"""(family, number) -> one sentence."""


def why_not(family: str, number: int) -> str:
    """Why check `number` is not made for tasks of `family`."""
    return NOT_FOR.get((family, number), f"The check is not made for {family} tasks.")
