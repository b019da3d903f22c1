"""The comparison of the prefix-tuning paper (Li & Liang 2021) in one harness: methods, tasks, scores, studies.

Everything that is compared with the prefixes of the product lives here and not in the product.
"""
