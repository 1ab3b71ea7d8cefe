"""How good is a representation of transcriptomes for perturbation analysis?"""
