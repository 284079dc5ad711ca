from torch import nn

import pds


class Denoiser(nn.Module):  # yours, with its weights: D(x, sigma) is the expected clean image
    def forward(self, x, sigma):
        return x / (1 + sigma[:, None, None, None] ** 2)


process = pds.VarianceExploding(0.002, 80, 1000)
model = pds.wrap(Denoiser(), predicts="data", process=process, shape=(3, 32, 32), data_range=(-1, 1))
samples = pds.sample(model, pds.EDM(18), images=16)
pds.grid(samples.images).save("your_network.png")
