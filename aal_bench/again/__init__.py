"""Class-conditional gates (CAS, AGAIN's ASE), feature fusion (HFF), and the network around them.

Torch only; knows no toolkit, no task and no training loop. AGAIN's attribution span enlargement,
ASE, is the gate of CAS (Bai et al. 2021, arXiv 2103.08307) with the weights of two classes mixed in
training.
"""
