"""New training images from masks: without what causes the label (counterfactual), or with another background (factual).

Chang, Adam & Goldenberg 2021, *Towards Robust Classification Model by Counterfactual and Invariant Data Generation*.
"""
